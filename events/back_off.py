"""How long to wait before the next try of something that keeps failing."""

# At 2**30 every delay has reached its limit. A larger exponent would overflow a float.
_MAX_EXPONENT = 30


def back_off_s(failures: int, *, first_s: float, most_s: float, factor: float = 2.0) -> float:
    """Seconds to wait after so many failures in a row.

    0 without a failure, `first_s` after the first one, then `factor` times as long after each more,
    but never more than `most_s`.
    """
    if failures < 1:
        return 0.0
    return min(first_s * factor ** min(failures - 1, _MAX_EXPONENT), most_s)
