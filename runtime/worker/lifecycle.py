"""Keeps one ComfyUI for all handlers of a container: starts, watches, sleeps, ends.

The states are in runtime/worker/states.py. How handlers ask for ComfyUI is decided in
runtime/worker/control.py; when the worker is idle, in idle.py; when another start is hopeless, in
start_failures.py; when its machine is unfit for jobs, in soundness.py; how fast it is, in
benchmark.py.
"""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from handler.settings import Settings
from handler.worker_protocol import BenchmarkResult, Depth, State, WorkerStatus
from runtime.hooks import Change, HookDispatcher, Hooks
from runtime.log import log
from runtime.models.manifest import configured_manifests
from runtime.models.supply import ModelSupply
from runtime.process.child import describe_exit
from runtime.worker.benchmark import Benchmark
from runtime.worker.comfyui_process import ComfyUIProcess, ComfyUIStartError, UnfitDeviceError
from runtime.worker.housekeeper import Housekeeper
from runtime.worker.idle import Idle
from runtime.worker.prewarmed_process import Prewarmed
from runtime.worker.soundness import Soundness
from runtime.worker.start_failures import StartFailures
from runtime.worker.start_reports import StartReports
from runtime.worker.states import check_move
from runtime.worker.warm_up import warm_up

_HOOKS_WITHIN_S = 1.0
_ENDING = (State.DRAINING, State.STOPPED)
_SERVING = (State.READY, State.BENCHMARKING)


class Worker:
    """The owner of ComfyUI.

    Call `supervise` in a thread that lives as long as ComfyUI may; every other method may be
    called in any thread. One condition guards everything and is notified of every change: of the
    state, of the jobs, of a request, and of a process that has ended.
    """

    def __init__(self, settings: Settings, hooks: Sequence[Hooks] = ()) -> None:
        self.settings = settings
        self.state = State.STARTING
        self.starts = 0
        self._changed = threading.Condition()
        self._since = time.monotonic()
        self._cold_start_ms = 0.0
        self._process: ComfyUIProcess | None = None
        # Of the last start, also when its process is gone.
        self._reports = StartReports()
        self._hung_process: ComfyUIProcess | None = None
        self._killed_by = ""
        self._prewarmed = Prewarmed(settings, self._notify)
        self._idle = Idle(settings)
        self._failures = StartFailures()
        self._soundness = Soundness()
        self._benchmark = Benchmark(settings)
        self._drain_until = math.inf
        self._dispatcher = HookDispatcher(hooks, log)
        self.models = ModelSupply(settings, configured_manifests(settings))
        self.housekeeper = Housekeeper(settings, self._forget_prompts, self._drop_cache)

    def supervise(self) -> None:
        """Start ComfyUI whenever the state is `starting`, and watch it; returns after `stop`."""
        self._dispatcher.start()
        self.housekeeper.start()
        self.models.start()
        try:
            while self._wait_for_start():
                if process := self._start():
                    self._serve(process)
        finally:
            self.stop()
            self.housekeeper.stop()
            self._end_processes()
            self.models.stop()
            self._move(State.STOPPED)
            self._dispatcher.stop(_HOOKS_WITHIN_S)

    def wake(self) -> None:
        """Block until ComfyUI is ready, or the start under way (or begun now) has failed."""
        with self._changed:
            failed_before = self._failures.failed_starts_ever
            self._idle.requested_depth = Depth.AWAKE
            if self.state is State.INACTIVE:
                self._move(State.STARTING, "woken")
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self.state.is_settled or self._failures.failed_starts_ever > failed_before
            )

    def begin_job(self) -> None:
        """Count a job: while there is one, the worker does not sleep."""
        with self._changed:
            self._idle.begin_job()
            self._changed.notify_all()

    def end_job(self, *, has_completed: bool = False) -> None:
        """End a job; after the last one the idle time begins.

        `has_completed`: ComfyUI has run it without an error.
        """
        with self._changed:
            self._idle.end_job()
            if has_completed:
                self._soundness.note_completed_job()
            if self.state is State.READY:
                self._failures.note_end_of_job()
            self._changed.notify_all()

    def report_fault(self, job: str, starts: int, reason: str) -> None:
        """Replace a ComfyUI whose machine has made this job fail, or fail if it is unfit.

        `starts` is that of the ComfyUI. The faults of one that was replaced already are ignored.
        """
        with self._changed:
            if self.state is State.READY and self.starts == starts:
                self._failures.last_reason, self._killed_by = reason, ""
                self._soundness.note_fault(job, reason)
                unfit_reason = self._soundness.unfit_reason
                state = State.FAILED if unfit_reason else State.STARTING
                self._move(state, unfit_reason or reason)

    def drop(self, prompt_id: str) -> None:
        """Remove a prompt from ComfyUI whose handler is gone; call it before `end_job`.

        A ComfyUI that does not answer is replaced, unless other jobs run: they have deadlines.
        """
        with self._changed:
            process = self._process if self.state is State.READY else None
            is_last = self._idle.jobs <= 1
        if process:
            log(f"the handler of prompt {prompt_id} is gone: removing the prompt from ComfyUI")
            if not process.drop(prompt_id) and is_last:
                self.restart()

    def sleep(self, depth: Depth) -> bool:
        """Sleep now, as after the idle time of that depth. Blocks until the worker sleeps.

        False when a job runs, or one begins meanwhile.
        """
        with self._changed:
            if self._idle.jobs:
                return False
            self._idle.requested_depth = depth
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._idle.requested_depth is not depth or self._is_asleep(depth)
            )
            return self._idle.requested_depth is depth

    def restart(self) -> None:
        """Kill a ComfyUI that hangs; another one is started. Blocks until the death is noted."""
        with self._changed:
            process, starts = self._process, self.starts
            if self.state is not State.READY or process is None:
                return
            self._hung_process = process
        log("ComfyUI does not stop its job: restarting it")
        # Without the lock: a process that waits for its GPU may take long to die.
        process.stop(grace_s=0.0)
        with self._changed:
            self._changed.wait_for(lambda: self.state is not State.READY or self.starts != starts)

    def stop(self, grace_s: float = 0.0) -> None:
        """Accept no new jobs. ComfyUI may finish its jobs for `grace_s` seconds, then it ends.

        Of several calls, the one that leaves the least time counts.
        """
        with self._changed:
            self._drain_until = min(self._drain_until, time.monotonic() + grace_s)
            if self.state not in _ENDING:
                self._move(State.DRAINING)
            self._changed.notify_all()

    def wait_settled(self, timeout_s: float) -> State:
        """The state once the first start has succeeded or failed, or after `timeout_s` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self.state.is_settled, timeout_s)
            return self.state

    def run_benchmark(self) -> BenchmarkResult | str:
        """Wake, and run the benchmark; its result, or why there is none. Blocks until it ends."""
        before = self._benchmark.last
        self.wake()
        with self._changed:
            if self._idle.jobs or self.state is not State.READY:
                return f"the worker is {self.state} and has {self._idle.jobs} jobs: try again later"
            if (last := self._benchmark.last) and last is not before:
                # The worker has measured it by itself meanwhile, as after its first start.
                return last
            count = self._benchmark.count
            self._benchmark.force()
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._benchmark.count > count or self.state not in _SERVING
            )
            if self._benchmark.count == count or self._benchmark.last is None:
                return self._benchmark.failure or f"the worker is {self.state}"
            return self._benchmark.failure or self._benchmark.last

    def last_lines(self) -> list[str]:
        """The last lines that ComfyUI has logged; empty when none runs."""
        process = self._process
        return process.last_lines() if process else []

    @property
    def unfit_reason(self) -> str:
        """Why this machine can run no job, in words; '' while it may."""
        return self._soundness.unfit_reason

    def describe(self) -> WorkerStatus:
        """What a handler needs to know: the state, and where ComfyUI and its files are."""
        with self._changed:
            process = self._process
            return WorkerStatus(
                state=self.state,
                starts=self.starts,
                jobs=self._idle.jobs,
                cold_start_ms=self._cold_start_ms,
                failure=self._failures.last_reason,
                killed_by=self._killed_by,
                base_url=process.base_url if process else "",
                comfyui_version=process.version.text if process else "",
                comfyui_pid=process.pid if process else None,
                prewarmed_pid=self._prewarmed.pid,
                prefetched_bytes=self.models.read_bytes,
                running_since=self.housekeeper.running_since(),
                device=self._reports.device,
                failed_nodes=self._reports.failed_nodes,
                score=self._benchmark.last.score if self._benchmark.last else None,
                benchmark=self._benchmark.last,
                folders=self._folders(),
            )

    def _folders(self) -> dict[str, Path]:
        """ComfyUI's folders of files by output type."""
        data = self.settings.comfyui_data
        return {name: data / name for name in ("output", "input", "temp")}

    def _forget_prompts(self, prompt_ids: Sequence[str]) -> None:
        # A ComfyUI that was started since does not know them.
        if process := self._process:
            process.forget(prompt_ids)

    def _drop_cache(self) -> None:
        if process := self._process:
            process.free()

    def _wait_for_start(self) -> bool:
        """Wait until ComfyUI is to be started; False when the worker ends instead."""
        with self._changed:
            while self.state in (State.INACTIVE, State.FAILED):
                if self._idle.depth() is Depth.EXIT and self._prewarmed.exists:
                    self._prewarmed.end(self._idle.reason())
                    self._changed.notify_all()
                self._wait(self._idle.until_next_limit_s())
            pause_s = max(self._failures.pause_s(), self._soundness.pause_s())
            self._changed.wait_for(lambda: self.state in _ENDING, pause_s)
            return self.state is State.STARTING

    def _start(self) -> ComfyUIProcess | None:
        """A ComfyUI that is ready; None when its start has failed, or the worker ends."""
        began = time.monotonic()
        if self._soundness.is_recovering:
            # The fault may be a full disk.
            self.housekeeper.clean()
        prewarmed = self._prewarmed.take()
        try:
            process = prewarmed or ComfyUIProcess(
                self.settings, self._notify, has_self_test=self._soundness.is_recovering
            )
            with self._changed:
                self._process, self._reports = process, process.reports
            process.begin()
            timeout_s = self.settings.comfyui_start_timeout_s
            if not process.wait_until_ready(timeout_s, lambda: self.state in _ENDING):
                return None
            if (path := self.settings.warmup_workflow) and not self._idle.jobs:
                folders = self._folders()
                warm_up(path, process, self.models, self._has_job_or_ends, folders, timeout_s)
        except (ComfyUIStartError, OSError) as error:
            has_ended = prewarmed is not None and prewarmed.wait(0) is not None
            self._end_processes()
            if has_ended:
                log(f"the prewarmed process did not become ComfyUI: starting another. {error}")
                return self._start()
            self._note_failed_start(str(error), is_unfit=isinstance(error, UnfitDeviceError))
            return None
        with self._changed:
            if self.state in _ENDING:
                return None
            self.starts += 1
            self._cold_start_ms = round((time.monotonic() - began) * 1000, 1)
            self._failures.note_start()
            self._soundness.note_start()
            self._idle.restart()
            has_benchmark = self._benchmark.is_requested and not self._idle.jobs
            state = State.BENCHMARKING if has_benchmark else State.READY
            self._move(state, process.base_url)
            return process

    def _serve(self, process: ComfyUIProcess) -> None:
        """Return when ComfyUI has died, or was ended because the worker sleeps or ends."""
        while task := self._wait_while_serving(process):
            task(process)
        self._stop_process()
        if self.state is State.INACTIVE and self._idle.depth() < Depth.EXIT:
            self._prewarmed.start()
        self._forget_process()

    def _unload_models(self, process: ComfyUIProcess) -> None:
        log(f"{self._idle.reason()}: unloading the models")
        process.free()
        with self._changed:
            # A job that has begun meanwhile loads them again.
            self._idle.models_are_unloaded = self._idle.depth() is Depth.FREE
            self._changed.notify_all()

    def _has_job_or_ends(self) -> bool:
        return self._idle.jobs > 0 or self.state in _ENDING

    def _measure(self, process: ComfyUIProcess) -> None:
        """Run the benchmark; a job that arrives ends it."""
        with contextlib.closing(process.api()) as api:
            self._benchmark.run(api, self._folders(), self._has_job_or_ends)
        with self._changed:
            self._idle.restart()
            if self.state is State.BENCHMARKING:
                self._move(State.READY)

    def _wait_while_serving(
        self, process: ComfyUIProcess
    ) -> Callable[[ComfyUIProcess], None] | None:
        """What is to be done with this ComfyUI now; None when it serves no longer."""
        with self._changed:
            while True:
                left_s = self._drain_until - time.monotonic()
                if self.state in _ENDING and (self._idle.jobs == 0 or left_s <= 0):
                    return None
                if self.state in (State.STARTING, State.FAILED):
                    # Its machine has made a job fail.
                    return None
                if (status := process.wait(0)) is not None:
                    self._note_death(process, status)
                    return None
                if self.state is State.BENCHMARKING:
                    return self._measure
                depth = self._idle.depth()
                if self.state is State.READY:
                    if depth >= Depth.STOP:
                        self._move(State.INACTIVE, self._idle.reason())
                        return None
                    if depth is Depth.FREE and not self._idle.models_are_unloaded:
                        return self._unload_models
                    due_s = self._benchmark.due_in_s(self._idle.jobs, self._idle.idle_s())
                    if due_s <= 0:
                        self._move(State.BENCHMARKING)
                        return self._measure
                    left_s = min(left_s, due_s)
                self._wait(min(left_s, self._idle.until_next_limit_s()))

    def _is_asleep(self, depth: Depth) -> bool:
        """Whether the worker sleeps that deep, or does not run ComfyUI for another reason."""
        match self.state:
            case State.STARTING:
                return False
            case State.READY:
                return depth is Depth.FREE and self._idle.models_are_unloaded
            case _:
                is_stopped = self._process is None
                return is_stopped and (depth < Depth.EXIT or not self._prewarmed.exists)

    def _note_failed_start(self, reason: str, *, is_unfit: bool) -> None:
        with self._changed:
            if is_unfit:
                self._soundness.note_unfit_device(reason)
            if self._soundness.is_recovering and self.state is State.STARTING:
                self._failures.last_reason = reason
                self._soundness.note_failed_start(reason)
                if self._soundness.unfit_reason:
                    self._move(State.FAILED, self._soundness.unfit_reason)
                return
            self._failures.note_failed_start(reason)
            if self.state not in _ENDING:
                # `inactive`: only the next event begins another start.
                is_hopeless = is_unfit or self._failures.has_failed_too_often()
                self._move(State.FAILED if is_hopeless else State.INACTIVE, reason)
            self._changed.notify_all()

    def _note_death(self, process: ComfyUIProcess, status: int) -> None:
        reason = process.explain(f"ComfyUI ended with {describe_exit(status)}")
        prompt_id = "" if process is self._hung_process else process.last_prompt
        ran_s = time.monotonic() - self._since
        self._failures.note_death(reason, ran_s=ran_s, is_by_job=bool(prompt_id))
        self._killed_by = prompt_id
        if prompt_id:
            # The machine may have ended it as well as the job.
            self._soundness.begin_recovery(reason)
        if self.state not in _ENDING:
            # With a job the death may be of its making: where jobs end, deaths are forgotten.
            is_hopeless = self._failures.has_died_too_often() and not self._idle.jobs
            self._move(State.FAILED if is_hopeless else State.STARTING, reason)

    def _end_processes(self) -> None:
        self._stop_process()
        self._prewarmed.end()
        self._forget_process()

    def _stop_process(self) -> None:
        self.models.forget_loads()
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
            change = Change(self.state, state, now - self._since, reason)
            if state is not State.STOPPED:
                # Before the state changes: what has an effect is in the log, even if we are killed.
                log(str(change))
            self.state, self._since = state, now
            self._dispatcher.put(change)
            self._changed.notify_all()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _wait(self, timeout_s: float) -> None:
        """Wait for the next change, `timeout_s` seconds at most (which may be infinite)."""
        self._changed.wait(min(timeout_s, threading.TIMEOUT_MAX))
