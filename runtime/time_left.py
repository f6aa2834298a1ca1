"""How a time that is left reads."""


def time_left(seconds: float | None) -> str:
    """`about 12 s left`, `about 3 min left`; "" if it is not known, or nearly over."""
    if seconds is None or seconds < 0.5:
        return ""
    if seconds < 100:
        return f"about {seconds:.0f} s left"
    return f"about {seconds / 60:.0f} min left"
