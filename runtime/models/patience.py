"""How long a source is given: the slowest rate, the number of tries, the pauses between them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """The defaults give a source that does not answer about three quarters of a minute."""

    tries: int = 8
    """Failures in a row without one new byte."""
    first_pause_s: float = 0.5
    longest_pause_s: float = 15.0
    window_s: float = 15.0
    """Over which the rate is measured."""
    least_bytes_per_s: float = 64 * 1024
    """Of all connections of the first file together."""


class Retries:
    """Counts the failures of a source. Connections that fail together count as one failure."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._failures = 0
        self.not_before = 0.0
        """The time.monotonic() before which nothing is to be asked."""

    def progressed(self) -> None:
        self._failures = 0

    def may_retry(self, now: float, retry_after_s: float | None) -> bool:
        """Take note of a failure: whether the source is to be asked again, from `not_before` on."""
        if now < self.not_before:
            return True
        self._failures += 1
        if self._failures >= self._patience.tries:
            return False
        self.not_before = now + max(self._pause_s(), retry_after_s or 0.0)
        return True

    def _pause_s(self) -> float:
        """None after the first failure, because most lines that are cut can be used at once."""
        if self._failures < 2:
            return 0.0
        doubled: float = self._patience.first_pause_s * 2 ** (self._failures - 2)
        return min(doubled, self._patience.longest_pause_s)
