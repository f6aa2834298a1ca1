"""When the worker cleans up, and what it knows of the running jobs: its folders, ComfyUI's history.

What is removed from the folders is decided in runtime/worker/housekeeping.py.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from handler.settings import Settings
from runtime.log import log
from runtime.worker.housekeeping import caches_many_prompts, clean, is_low

CLEAN_EVERY_S = 10.0
# How often it looks whether the disk is nearly full.
LOOK_EVERY_S = 1.0
# ComfyUI keeps a copy of each workflow in its history: 5 MB for a large one.
FORGET_AFTER_JOBS = 16
_END_WITHIN_S = 1.0


@dataclass(slots=True, eq=False)
class RunningJob:
    """A job that has not ended: when it began, in seconds since the epoch, and its prompts."""

    began: float
    prompt_ids: list[str] = field(default_factory=list)


class Housekeeper:
    """Cleans in a thread of its own, from `start` to `stop`. Its methods are for any thread.

    `forget_prompts` removes prompts from ComfyUI's history. It gets the prompts of jobs that have
    ended: their handlers read the entries no more. `drop_cache` empties ComfyUI's node cache.
    """

    def __init__(
        self,
        settings: Settings,
        forget_prompts: Callable[[Sequence[str]], None],
        drop_cache: Callable[[], None],
    ) -> None:
        self._settings, self._forget_prompts = settings, forget_prompts
        self._drop_cache = drop_cache
        self._running: list[RunningJob] = []
        self._ended_prompts: list[str] = []
        self._is_stopped = self._is_low = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="housekeeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread. One that removes files just now may outlive the call."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(_END_WITHIN_S)

    def begin_job(self) -> RunningJob:
        """Note a job. What is used from now on stays until `end_job`."""
        with self._changed:
            job = RunningJob(time.time())
            self._running.append(job)
            return job

    def end_job(self, job: RunningJob) -> None:
        """Note the end of a job; a second call changes nothing."""
        with self._changed:
            if job in self._running:
                self._running.remove(job)
                self._ended_prompts += job.prompt_ids
                self._changed.notify_all()

    def running_since(self) -> float | None:
        """When the oldest running job began, in seconds since the epoch; None when no job runs."""
        with self._changed:
            return min((job.began for job in self._running), default=None)

    def clean(self) -> None:
        """Remove what is due from ComfyUI's folders now."""
        removed = clean(self._settings, self.running_since())
        is_cache_outdated = not all(removal.is_job_folder for removal in removed)
        if is_cache_outdated and caches_many_prompts(self._settings):
            self._drop_cache()
        for reason in dict.fromkeys(removal.reason for removal in removed):
            sizes = [removal.size_bytes for removal in removed if removal.reason == reason]
            log(f"removed {len(sizes)} files or folders ({sum(sizes) / 1e6:.1f} MB): {reason}")
        was_low, self._is_low = self._is_low, is_low(self._settings)
        if self._is_low and not was_low:
            log(
                f"less than {self._settings.clean_below_mb} MB (CLEAN_BELOW) is free, and no more"
                " files may be removed: lower CLEAN_OLDER_THAN, or make the disk larger"
            )

    def _run(self) -> None:
        look_at = clean_at = time.monotonic()
        while self._wait_until(look_at):
            if prompts := self._take_ended_prompts():
                self._forget_prompts(prompts)
            began = time.monotonic()
            if began >= clean_at or (began >= look_at and is_low(self._settings)):
                self._try_clean()
                clean_at = time.monotonic() + CLEAN_EVERY_S
            if began >= look_at:
                # On a large disk that stays nearly full, a twentieth of the time at most.
                took_s = time.monotonic() - began
                look_at = time.monotonic() + min(max(LOOK_EVERY_S, 20 * took_s), CLEAN_EVERY_S)

    def _try_clean(self) -> None:
        try:
            self.clean()
        except OSError as error:
            log(f"cannot clean ComfyUI's folders: {error}")

    def _wait_until(self, look_at: float) -> bool:
        """Wait for that time, or for FORGET_AFTER_JOBS jobs; False when stopped."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_stopped or len(self._ended_prompts) >= FORGET_AFTER_JOBS,
                max(look_at - time.monotonic(), 0.0),
            )
            return not self._is_stopped

    def _take_ended_prompts(self) -> list[str]:
        with self._changed:
            prompts, self._ended_prompts = self._ended_prompts, []
            return prompts
