"""Keeps one ComfyUI for all handlers of a container: starts it, watches it, lets it sleep, ends it.

How handlers ask for it is runtime/worker/control.py; what its states are, runtime/worker/states.py.
"""

import math
import threading
import time
from collections.abc import Sequence

from events.back_off import back_off_s
from handler.settings import Settings
from handler.worker_protocol import Depth, State, WorkerStatus
from runtime.hooks import Change, HookDispatcher, Hooks, StateLines
from runtime.log import log
from runtime.models.prefetch import Prefetcher
from runtime.process.child import describe_exit
from runtime.worker.comfyui_process import ComfyUIProcess, ComfyUIStartError
from runtime.worker.idle import Idle
from runtime.worker.prewarmed_process import Prepared
from runtime.worker.states import check_move

MAX_FAILED_STARTS = 5
_MAX_BACKOFF_S = 8.0
_STABLE_AFTER_S = 60.0
_WATCH_EVERY_S = 0.05
_HOOKS_WITHIN_S = 1.0


class Worker:
    """The owner of ComfyUI. `supervise` runs in a thread that lives on; the rest in any thread."""

    def __init__(self, settings: Settings, hooks: Sequence[Hooks] = ()) -> None:
        self.settings = settings
        self.state = State.STARTING
        self.starts = 0
        self.last_failure = ""
        self._teller = HookDispatcher([StateLines(log), *hooks], log)
        self._changed = threading.Condition()
        self._since = time.monotonic()
        self._cold_start_ms = 0.0
        self._process: ComfyUIProcess | None = None
        self._prepared = Prepared(settings, self._log_comfyui)
        self._prefetcher = Prefetcher(settings)
        self._wanted, self._stopping, self._stop_at = True, False, math.inf
        self._attempts = self._failed_starts = self._early_deaths = 0
        self._idle, self._is_freed = Idle(settings), False

    def supervise(self) -> None:
        """Run until `stop`: start ComfyUI when it is wanted, and serve until it dies or sleeps."""
        self._teller.start()
        try:
            while self._wait_until_wanted():
                if self._start():
                    self._serve()
        finally:
            self.stop()
            self._end_processes()
            self._move(State.STOPPED)
            self._teller.stop(_HOOKS_WITHIN_S)

    def wake(self) -> None:
        """Block until ComfyUI is ready, or the start that is under way (or made now) has failed."""
        over = (State.READY, State.FAILED, State.DRAINING, State.STOPPED)
        with self._changed:
            seen = self._attempts
            self._wanted, self._idle.told = True, Depth.AWAKE
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.state in over or self._attempts > seen)

    def prefetch(self, model_names: Sequence[str]) -> None:
        """Begin to read the files of these names into the page cache."""
        self._prefetcher.begin(model_names)

    def begin_job(self) -> None:
        """Count a job: as long as there is one, the worker does not sleep."""
        with self._changed:
            self._idle.begin_job()
            self._is_freed = False
            self._changed.notify_all()

    def end_job(self) -> None:
        """End a job; when none is left, the time to sleep begins to count."""
        with self._changed:
            self._idle.end_job()
            if self.state is State.READY:
                self._early_deaths = 0
            self._changed.notify_all()

    def drop(self, prompt_id: str) -> None:
        """Take a prompt out of ComfyUI that nobody waits for any more, while its job still counts.

        A ComfyUI that does not answer is replaced, unless others have jobs: they have deadlines.
        """
        with self._changed:
            process = self._process if self.state is State.READY else None
            is_last = self._idle.jobs <= 1
        if process:
            log(f"the handler of prompt {prompt_id} is gone: the prompt is dropped")
            if not process.drop(prompt_id) and is_last:
                self.restart()

    def sleep(self, depth: Depth) -> bool:
        """Sleep now, as after the idle time of that depth; blocks until it is so.

        False while a job runs, or if one comes meanwhile.
        """
        with self._changed:
            if self._idle.jobs:
                return False
            self._idle.told = depth
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._idle.told is not depth or self._sleeps(depth))
            return self._idle.told is depth

    def restart(self) -> None:
        """Kill ComfyUI now; another one is started. Returns when the death is noted."""
        with self._changed:
            process, starts = self._process, self.starts
            if self.state is not State.READY or process is None:
                return
        log("ComfyUI does not give up its job: restarting it")
        # Without the lock: a process that waits for its GPU may take long to die.
        process.stop(grace_s=0.0)
        with self._changed:
            self._changed.wait_for(lambda: self.state is not State.READY or self.starts != starts)

    def stop(self, grace_s: float = 0.0) -> None:
        """Take nothing new. ComfyUI may finish its jobs for `grace_s` seconds, then it ends.

        Of several calls the one that leaves the least time counts.
        """
        with self._changed:
            self._stop_at = min(self._stop_at, time.monotonic() + grace_s)
            if not self._stopping:
                self._stopping = True
                self._move(State.DRAINING)

    def wait_settled(self, timeout_s: float) -> State:
        """The state, once the first start has succeeded or failed, or the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self.state is not State.STARTING, timeout_s)
            return self.state

    def last_lines(self) -> list[str]:
        """What ComfyUI has logged last; empty where none runs."""
        process = self._process
        return process.last_lines() if process else []

    def describe(self) -> WorkerStatus:
        """What a handler needs to know: state, and where ComfyUI and its files are."""
        data = self.settings.comfyui_data
        with self._changed:
            process = self._process
            return WorkerStatus(
                state=self.state,
                starts=self.starts,
                jobs=self._idle.jobs,
                cold_start_ms=self._cold_start_ms,
                failure=self.last_failure,
                base_url=process.base_url if process else "",
                comfyui_pid=process.pid if process else None,
                prepared_pid=self._prepared.pid,
                prefetched_bytes=self._prefetcher.read_bytes,
                folders={name: data / name for name in ("output", "input", "temp")},
            )

    def _wait_until_wanted(self) -> bool:
        with self._changed:
            while not self._may_go_on():
                if self._idle.depth() is Depth.EXIT and self._prepared.is_there:
                    self._prepared.end(self._idle.reason())
                    self._changed.notify_all()
                is_there = self._prepared.is_there
                self._changed.wait(self._idle.until_exit_s() if is_there else None)
            if (in_a_row := self._failed_starts + self._early_deaths) > 1:
                pause = back_off_s(in_a_row - 1, first_s=1.0, most_s=_MAX_BACKOFF_S)
                self._changed.wait_for(lambda: self._stopping, timeout=pause)
            if not self._stopping and self.state is not State.STARTING:
                self._move(State.STARTING, "wanted")
            return not self._stopping

    def _may_go_on(self) -> bool:
        return self._stopping or (self._wanted and self.state is not State.FAILED)

    def _start(self) -> bool:
        began = time.monotonic()
        prepared = self._prepared.take()
        try:
            process = prepared or ComfyUIProcess(self.settings, self._log_comfyui)
            with self._changed:
                self._process = process
            process.begin()
            timeout_s = self.settings.comfyui_start_timeout_s
            if not process.wait_until_ready(timeout_s, lambda: self._stopping):
                return False
        except (ComfyUIStartError, OSError) as error:
            has_ended = prepared is not None and prepared.wait(0) is not None
            self._end_processes()
            if has_ended:
                log(f"the prepared process did not become ComfyUI: starting another. {error}")
                return self._start()
            self._note_failed_start(str(error))
            return False
        with self._changed:
            if self._stopping:
                return False
            self.starts += 1
            self._failed_starts = 0
            self._cold_start_ms = round((time.monotonic() - began) * 1000, 1)
            self._idle.restart()
            self._is_freed = False
            self._move(State.READY, process.base_url)
        return True

    def _serve(self) -> None:
        """Until ComfyUI dies, falls asleep, or has to end."""
        process, ready_at = self._process, time.monotonic()
        assert process is not None
        while True:
            status = process.wait(_WATCH_EVERY_S)
            with self._changed:
                if time.monotonic() - ready_at >= _STABLE_AFTER_S:
                    self._early_deaths = 0
                if self._stopping and (self._idle.jobs == 0 or time.monotonic() >= self._stop_at):
                    return
                if status is not None:
                    self._note_death(process, status)
                    break
                depth = self._idle.depth()
                if not self._stopping and depth >= Depth.STOP:
                    self._wanted = False
                    self._move(State.INACTIVE, self._idle.reason())
                    break
            if depth is Depth.FREE and not self._is_freed:
                self._free(process)
        self._stop_process()
        if self.state is State.INACTIVE and self._idle.depth() < Depth.EXIT:
            self._prepared.start()
        self._forget_process()

    def _free(self, process: ComfyUIProcess) -> None:
        log(f"{self._idle.reason()}: models are unloaded")
        process.free()
        with self._changed:
            # A job that has begun meanwhile loads them again.
            self._is_freed = self._idle.depth() is Depth.FREE
            self._changed.notify_all()

    def _sleeps(self, depth: Depth) -> bool:
        """Whether it sleeps as deep as that, or cannot."""
        match self.state:
            case State.STARTING:
                return False
            case State.READY:
                return depth is Depth.FREE and self._is_freed
            case _:
                is_gone = self._process is None
                return is_gone and (depth < Depth.EXIT or not self._prepared.is_there)

    def _note_failed_start(self, reason: str) -> None:
        with self._changed:
            self._attempts += 1
            self._failed_starts += 1
            self.last_failure = reason
            if self._stopping:
                return
            # The next event decides whether another start is worth its time.
            self._wanted = False
            is_hopeless = self._failed_starts >= MAX_FAILED_STARTS
            self._move(State.FAILED if is_hopeless else State.INACTIVE, reason)

    def _note_death(self, process: ComfyUIProcess, status: int) -> None:
        self.last_failure = process.explain(f"ComfyUI ended with {describe_exit(status)}")
        self._early_deaths += 1
        if self._stopping:
            return
        # Of a job's making or not: where jobs come to an end, `end_job` forgets the deaths.
        is_hopeless = self._early_deaths >= MAX_FAILED_STARTS and not self._idle.jobs
        self._wanted = not is_hopeless
        self._move(State.FAILED if is_hopeless else State.STARTING, self.last_failure)

    def _end_processes(self) -> None:
        self._stop_process()
        self._prepared.end()
        self._forget_process()

    def _stop_process(self) -> None:
        self._prefetcher.stop()
        if self._process:
            self._process.stop()

    def _forget_process(self) -> None:
        with self._changed:
            self._process = None
            self._changed.notify_all()

    def _move(self, state: State, reason: str = "") -> None:
        with self._changed:
            check_move(self.state, state)
            now = time.monotonic()
            self._teller.put(Change(self.state, state, now - self._since, reason))
            self.state, self._since = state, now
            self._changed.notify_all()

    def _log_comfyui(self, line: str) -> None:
        log(f"comfyui: {line}")
