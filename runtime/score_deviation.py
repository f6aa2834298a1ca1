"""What is wrong with a score that differs much from those of equal GPUs."""

# The most that equal GPUs differ by; more is heat, a power limit or a wrong configuration.
TOLERANCE = 0.2


def deviation(score: float, median: float, of: str) -> str:
    """A sentence about a score that is far from `median`; '' for one that is not.

    `of` says in words which scores these are: "the median of ...".
    """
    difference = score / median - 1
    if abs(difference) <= TOLERANCE:
        return ""
    side = "below" if difference < 0 else "above"
    return (
        f"score {score:g} is {abs(difference):.0%} {side} {median:g}, {of}:"
        " check its temperature, power limit and configuration"
    )
