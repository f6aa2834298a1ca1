"""How long to wait before the next try of something that keeps failing."""

# Beyond it every factor has reached its limit, and a float would run over in the end.
_MAX_EXPONENT = 30


def back_off_s(failures: int, *, first_s: float, most_s: float, factor: float = 2.0) -> float:
    """Seconds: none without a failure, then `first_s`, each the multiple, `most_s` at most."""
    if failures < 1:
        return 0.0
    return min(first_s * factor ** min(failures - 1, _MAX_EXPONENT), most_s)
