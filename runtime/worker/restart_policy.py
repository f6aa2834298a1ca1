"""What follows a failed start, a death of ComfyUI or a fault of the machine: the next state.

When another start is hopeless is counted in runtime/worker/start_failures.py, what faults say about
the machine in soundness.py. The moves are made in supervisor.py and lifecycle.py.
"""

from dataclasses import dataclass

from handler.worker_protocol import State
from runtime.worker.soundness import Soundness
from runtime.worker.start_failures import StartFailures


@dataclass(frozen=True, slots=True)
class Verdict:
    """The state that a worker has to have next, and the reason."""

    state: State
    reason: str


class RestartPolicy:
    """The failures, deaths and faults since the worker began. The lock of its owner guards it.

    `killed_by` is the prompt that ran when the last ComfyUI ended by itself; '' when none did.
    """

    def __init__(self) -> None:
        self.failures = StartFailures()
        self.soundness = Soundness()
        self.killed_by = ""

    def after_fault(self, job: str, reason: str) -> Verdict:
        """A job has failed through a fault of the machine."""
        self.failures.last_reason, self.killed_by = reason, ""
        self.soundness.note_fault(job, reason)
        if self.soundness.unfit_reason:
            return Verdict(State.FAILED, self.soundness.unfit_reason)
        return Verdict(State.STARTING, reason)

    def after_failed_start(self, reason: str, *, is_unfit: bool) -> Verdict:
        """ComfyUI did not become ready. `is_unfit`: its device can run no job."""
        if is_unfit:
            self.soundness.note_unfit_device(reason)
        if self.soundness.is_recovering:
            self.failures.last_reason = reason
            self.soundness.note_failed_start(reason)
            if self.soundness.unfit_reason:
                return Verdict(State.FAILED, self.soundness.unfit_reason)
            return Verdict(State.STARTING, reason)
        self.failures.note_failed_start(reason)
        is_hopeless = is_unfit or self.failures.has_failed_too_often()
        # `inactive`: only the next event begins another start.
        return Verdict(State.FAILED if is_hopeless else State.INACTIVE, reason)

    def after_death(self, reason: str, *, killed_by: str, ran_s: float, has_job: bool) -> Verdict:
        """ComfyUI ended by itself, `ran_s` seconds after it was ready.

        `killed_by` is the prompt that ran then, '' for none.
        """
        self.failures.note_death(reason, ran_s=ran_s, is_by_job=bool(killed_by))
        self.killed_by = killed_by
        if killed_by:
            # The machine may have ended it as well as the job.
            self.soundness.begin_recovery(reason)
        # With a job the death may be of its making: where jobs end, deaths are forgotten.
        is_hopeless = self.failures.has_died_too_often() and not has_job
        return Verdict(State.FAILED if is_hopeless else State.STARTING, reason)

    def note_start(self) -> None:
        """ComfyUI is ready."""
        self.failures.note_start()
        self.soundness.note_start()

    def note_end_of_job(self, *, has_completed: bool, is_ready: bool) -> None:
        """A job has ended. `has_completed`: ComfyUI has run it without an error.

        `is_ready`: ComfyUI has survived it.
        """
        if has_completed:
            self.soundness.note_completed_job()
        if is_ready:
            self.failures.note_end_of_job()

    def pause_s(self) -> float:
        """Seconds to wait before the next start."""
        return max(self.failures.pause_s(), self.soundness.pause_s())
