"""Supervises ComfyUI in one thread: starts it, watches it, lets it sleep, starts it again.

The states are in runtime/worker/states.py. What follows a failed start or a death is decided in
restart_policy.py; when the worker is idle, in idle.py; how fast its machine is, in benchmark.py;
how one process is started and stopped, in comfyui_process.py.
"""

import contextlib
import threading
import time
from collections.abc import Callable

from handler.settings import Settings
from handler.worker_protocol import Depth, State
from runtime.log import log
from runtime.models.supply import ModelSupply
from runtime.process.child import describe_exit
from runtime.worker.comfyui_process import ComfyUIProcess, ComfyUIStartError, UnfitDeviceError
from runtime.worker.housekeeper import Housekeeper
from runtime.worker.shared_state import SharedState
from runtime.worker.warm_up import warm_up


class Supervisor:
    """Owns the processes. Call `run` and `end` in a thread that lives as long as ComfyUI may."""

    def __init__(
        self,
        settings: Settings,
        shared: SharedState,
        models: ModelSupply,
        housekeeper: Housekeeper,
    ) -> None:
        self._settings, self._shared = settings, shared
        self._models, self._housekeeper = models, housekeeper

    def run(self) -> None:
        """Start ComfyUI whenever the state is `starting`; returns when the worker ends."""
        while self._wait_for_start():
            if process := self._start():
                self._serve(process)

    def end(self) -> None:
        """End all processes."""
        self._stop_process()
        self._shared.prewarmed.end()
        self._forget_process()

    def _wait_for_start(self) -> bool:
        """Wait until ComfyUI is to be started; False when the worker ends instead."""
        shared = self._shared
        with shared.changed:
            while shared.state in (State.INACTIVE, State.FAILED):
                if shared.idle.depth() is Depth.EXIT and shared.prewarmed.exists:
                    shared.prewarmed.end(shared.idle.reason())
                    shared.changed.notify_all()
                self._wait(shared.idle.until_next_limit_s())
            shared.changed.wait_for(lambda: shared.is_ending, shared.restarts.pause_s())
            return shared.state is State.STARTING

    def _start(self) -> ComfyUIProcess | None:
        """A ComfyUI that is ready; None when its start has failed, or the worker ends."""
        began = time.monotonic()
        shared = self._shared
        is_recovering = shared.restarts.soundness.is_recovering
        if is_recovering:
            # The fault may be a full disk.
            self._housekeeper.clean()
        prewarmed = shared.prewarmed.take()
        try:
            process = prewarmed or ComfyUIProcess(
                self._settings,
                shared.notify,
                has_self_test=is_recovering,
                compile_cache=shared.compile_cache,
            )
            with shared.changed:
                shared.process, shared.reports = process, process.reports
            process.begin()
            if not self._is_ready(process):
                return None
        except (ComfyUIStartError, OSError) as error:
            has_ended = prewarmed is not None and prewarmed.wait(0) is not None
            self.end()
            if has_ended:
                log(f"the prewarmed process did not become ComfyUI: starting another. {error}")
                return self._start()
            self._note_failed_start(str(error), is_unfit=isinstance(error, UnfitDeviceError))
            return None
        with shared.changed:
            if shared.is_ending:
                return None
            shared.starts += 1
            shared.cold_start_ms = round((time.monotonic() - began) * 1000, 1)
            shared.restarts.note_start()
            shared.idle.restart()
            has_benchmark = shared.benchmark.is_requested and not shared.idle.jobs
            shared.move(State.BENCHMARKING if has_benchmark else State.READY, process.base_url)
            return process

    def _is_ready(self, process: ComfyUIProcess) -> bool:
        """Wait for it, and warm it up; False when the worker ends. Raises ComfyUIStartError."""
        shared, timeout_s = self._shared, self._settings.comfyui_start_timeout_s
        if not process.wait_until_ready(timeout_s, lambda: shared.is_ending):
            return False
        if (path := self._settings.warmup_workflow) and not shared.idle.jobs:
            warm_up(path, process, self._models, shared.has_job_or_ends, shared.folders, timeout_s)
        return True

    def _note_failed_start(self, reason: str, *, is_unfit: bool) -> None:
        shared = self._shared
        with shared.changed:
            verdict = shared.restarts.after_failed_start(reason, is_unfit=is_unfit)
            # `starting` already while the worker recovers: it tries again.
            if not shared.is_ending and verdict.state is not shared.state:
                shared.move(verdict.state, verdict.reason)
            shared.changed.notify_all()

    def _serve(self, process: ComfyUIProcess) -> None:
        """Return when ComfyUI has died, or was ended because the worker sleeps or ends."""
        shared = self._shared
        while task := self._wait_while_serving(process):
            task(process)
        self._stop_process()
        if shared.state is State.INACTIVE and shared.idle.depth() < Depth.EXIT:
            shared.prewarmed.start()
        self._forget_process()

    def _wait_while_serving(
        self, process: ComfyUIProcess
    ) -> Callable[[ComfyUIProcess], None] | None:
        """What is to be done with this ComfyUI now; None when it serves no longer."""
        shared = self._shared
        with shared.changed:
            while True:
                left_s = shared.drain_until - time.monotonic()
                if shared.is_ending and (shared.idle.jobs == 0 or left_s <= 0):
                    return None
                if shared.state in (State.STARTING, State.FAILED):
                    # Its machine has made a job fail.
                    return None
                if (status := process.wait(0)) is not None:
                    self._note_death(process, status)
                    return None
                if shared.state is State.BENCHMARKING:
                    return self._measure
                depth = shared.idle.depth()
                if shared.state is State.READY:
                    if depth >= Depth.STOP:
                        shared.move(State.INACTIVE, shared.idle.reason())
                        return None
                    if depth is Depth.FREE and not shared.idle.models_are_unloaded:
                        return self._unload_models
                    due_s = shared.benchmark.due_in_s(shared.idle.jobs, shared.idle.idle_s())
                    if due_s <= 0:
                        shared.move(State.BENCHMARKING)
                        return self._measure
                    left_s = min(left_s, due_s)
                self._wait(min(left_s, shared.idle.until_next_limit_s()))

    def _unload_models(self, process: ComfyUIProcess) -> None:
        shared = self._shared
        log(f"{shared.idle.reason()}: unloading the models")
        process.free()
        with shared.changed:
            # A job that has begun meanwhile loads them again.
            shared.idle.models_are_unloaded = shared.idle.depth() is Depth.FREE
            shared.changed.notify_all()

    def _measure(self, process: ComfyUIProcess) -> None:
        """Run the benchmark; a job that arrives ends it."""
        shared = self._shared
        with contextlib.closing(process.api()) as api:
            shared.benchmark.run(api, shared.folders, shared.has_job_or_ends)
        with shared.changed:
            shared.idle.restart()
            if shared.state is State.BENCHMARKING:
                shared.move(State.READY)

    def _note_death(self, process: ComfyUIProcess, status: int) -> None:
        shared = self._shared
        verdict = shared.restarts.after_death(
            process.explain(f"ComfyUI ended with {describe_exit(status)}"),
            killed_by="" if process is shared.hung_process else process.last_prompt,
            ran_s=time.monotonic() - shared.since,
            has_job=shared.idle.jobs > 0,
        )
        if not shared.is_ending:
            shared.move(verdict.state, verdict.reason)

    def _stop_process(self) -> None:
        self._models.forget_loads()
        if process := self._shared.process:
            process.stop()

    def _forget_process(self) -> None:
        with self._shared.changed:
            self._shared.process = None
            self._shared.changed.notify_all()

    def _wait(self, timeout_s: float) -> None:
        """Wait for the next change, `timeout_s` seconds at most (which may be infinite)."""
        self._shared.changed.wait(min(timeout_s, threading.TIMEOUT_MAX))
