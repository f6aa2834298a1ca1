"""Whether the worker's machine can run jobs: what its faults so far say.

A fault costs one recovery: ComfyUI is started again with a self-test, again and again if it fails,
for RECOVER_WITHIN_S. The machine is unfit when that time is over, or when the first job after a
recovery meets a fault, too. The same job again proves nothing: it may be what makes the faults.
What a fault is, is decided in handler/machine_faults.py, what the self-test does in
runtime/worker/inside_executor.py, what becomes of the worker in restart_policy.py.
"""

import math
import time

# A disk that others fill for a moment, or a GPU that is being reset, is sound again by then.
RECOVER_WITHIN_S = 30.0
# Where a start of ComfyUI takes longer than that, one that was disturbed is not the last.
_MIN_STARTS = 2
_PAUSE_S = 1.0


class Soundness:
    """The faults since the worker began. The lock of its owner guards it.

    `unfit_reason` says why the machine can run no job; '' while it may.
    """

    def __init__(self) -> None:
        self.unfit_reason = ""
        self._reason = ""
        self._job = ""
        self._is_recovering = False
        self._recover_until = math.inf
        self._failed_starts = 0

    @property
    def is_recovering(self) -> bool:
        """Whether the next start of ComfyUI must pass the self-test."""
        return self._is_recovering

    def note_fault(self, job: str, reason: str) -> None:
        """A job has met a fault of the machine: recover, or be unfit."""
        if self._job not in ("", job):
            self.unfit_reason = (
                f"{_first_line(reason)}. A job before it: {_first_line(self._reason)}"
            )
        self._job = job
        self.begin_recovery(reason)

    def begin_recovery(self, reason: str) -> None:
        """Have the next start of ComfyUI pass the self-test."""
        self._reason = reason
        self._is_recovering, self._failed_starts = True, 0
        self._recover_until = time.monotonic() + RECOVER_WITHIN_S

    def note_failed_start(self, reason: str) -> None:
        """A start during the recovery has failed, mostly through the self-test."""
        self._failed_starts += 1
        if self._failed_starts >= _MIN_STARTS and time.monotonic() >= self._recover_until:
            # The last line is the self-test's, or the last that ComfyUI has logged.
            last_line = reason.splitlines()[-1]
            self.unfit_reason = f"{_first_line(self._reason)}. After a restart: {last_line}"

    def note_unfit_device(self, reason: str) -> None:
        """The device can run no job, and the next start would find the same one."""
        self.unfit_reason = reason

    def note_start(self) -> None:
        """ComfyUI has started, and passed the self-test if the worker was recovering."""
        self._is_recovering, self._failed_starts = False, 0

    def note_completed_job(self) -> None:
        """A job has succeeded: the faults before it do not count any more."""
        if not self._is_recovering:
            self._job = ""

    def pause_s(self) -> float:
        """Seconds to wait before the next start."""
        return _PAUSE_S if self._failed_starts else 0.0


def _first_line(text: str) -> str:
    return text.partition("\n")[0]
