"""Counts ComfyUI's failed starts and early deaths: whether to try again, and after which pause.

What becomes of the worker is decided in runtime/worker/restart_policy.py.
"""

from events.back_off import back_off_s

MAX_IN_A_ROW = 5
_FIRST_PAUSE_S = 1.0
_MAX_PAUSE_S = 8.0
# A death after this many seconds is not an early one.
_STABLE_AFTER_S = 60.0


class StartFailures:
    """The failures since the worker began. The lock of its owner guards it."""

    def __init__(self) -> None:
        self.last_reason = ""
        self.failed_starts_ever = 0
        self.failed_starts_in_a_row = 0
        self._early_deaths_in_a_row = 0
        self._was_last_death_by_job = False

    def note_failed_start(self, reason: str) -> None:
        self.last_reason = reason
        self.failed_starts_ever += 1
        self.failed_starts_in_a_row += 1

    def note_start(self) -> None:
        self.failed_starts_in_a_row = 0

    def note_death(self, reason: str, *, ran_s: float, is_by_job: bool = False) -> None:
        """ComfyUI ended by itself, `ran_s` seconds after it was ready.

        `is_by_job`: a job ran then, and has most likely ended it: the next start has no pause.
        """
        self.last_reason = reason
        self._was_last_death_by_job = is_by_job
        if ran_s >= _STABLE_AFTER_S:
            self._early_deaths_in_a_row = 0
        self._early_deaths_in_a_row += 1

    def note_end_of_job(self) -> None:
        """A job has ended while ComfyUI lived: the deaths before it do not count any more."""
        self._early_deaths_in_a_row = 0

    def has_failed_too_often(self) -> bool:
        return self.failed_starts_in_a_row >= MAX_IN_A_ROW

    def has_died_too_often(self) -> bool:
        return self._early_deaths_in_a_row >= MAX_IN_A_ROW

    def pause_s(self) -> float:
        """Seconds to wait before the next start: 0 after the first failure, then 1, 2, 4, 8."""
        deaths = 0 if self._was_last_death_by_job else self._early_deaths_in_a_row
        in_a_row = self.failed_starts_in_a_row + deaths
        return back_off_s(in_a_row - 1, first_s=_FIRST_PAUSE_S, most_s=_MAX_PAUSE_S)
