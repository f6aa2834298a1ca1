"""Keeps one ComfyUI for all handlers of a container: what may be asked of the worker.

The states are in runtime/worker/states.py. The thread that starts and watches ComfyUI is in
supervisor.py, what the threads share in shared_state.py. How handlers ask is decided in control.py.
"""

import time
from collections.abc import Sequence

from handler.settings import Settings
from handler.worker_protocol import BenchmarkResult, Depth, State, WorkerStatus
from runtime.hooks import HookDispatcher, Hooks
from runtime.log import log
from runtime.models.manifest import configured_manifests
from runtime.models.supply import ModelSupply
from runtime.worker.housekeeper import Housekeeper
from runtime.worker.shared_state import SharedState
from runtime.worker.supervisor import Supervisor

_HOOKS_WITHIN_S = 1.0
_SERVING = (State.READY, State.BENCHMARKING)


class Worker:
    """The owner of ComfyUI.

    Call `supervise` in a thread that lives as long as ComfyUI may; every other method may be
    called in any thread.
    """

    def __init__(self, settings: Settings, hooks: Sequence[Hooks] = ()) -> None:
        self.settings = settings
        self._dispatcher = HookDispatcher(hooks, log)
        self._shared = SharedState(settings, self._dispatcher.put)
        self.models = ModelSupply(settings, configured_manifests(settings))
        self.housekeeper = Housekeeper(settings, self._forget_prompts, self._drop_cache)
        self._supervisor = Supervisor(settings, self._shared, self.models, self.housekeeper)

    def supervise(self) -> None:
        """Start ComfyUI whenever the state is `starting`, and watch it; returns after `stop`."""
        self._dispatcher.start()
        self.housekeeper.start()
        self.models.start()
        self._shared.compile_cache.start()
        try:
            self._supervisor.run()
        finally:
            self._shared.compile_cache.stop(self._shared.drain_until)
            self.stop()
            self.housekeeper.stop()
            self._supervisor.end()
            self.models.stop()
            self._shared.move(State.STOPPED)
            self._dispatcher.stop(_HOOKS_WITHIN_S)

    @property
    def state(self) -> State:
        return self._shared.state

    @property
    def starts(self) -> int:
        """How often ComfyUI has become ready."""
        return self._shared.starts

    @property
    def unfit_reason(self) -> str:
        """Why this machine can run no job, in words; '' while it may."""
        return self._shared.restarts.soundness.unfit_reason

    def wake(self) -> None:
        """Block until ComfyUI is ready, or the start under way (or begun now) has failed."""
        shared = self._shared
        with shared.changed:
            failures = shared.restarts.failures
            failed_before = failures.failed_starts_ever
            shared.idle.requested_depth = Depth.AWAKE
            if shared.state is State.INACTIVE:
                shared.move(State.STARTING, "woken")
            shared.changed.notify_all()
            shared.changed.wait_for(
                lambda: shared.state.is_settled or failures.failed_starts_ever > failed_before
            )

    def begin_job(self) -> None:
        """Count a job: while there is one, the worker does not sleep."""
        shared = self._shared
        with shared.changed:
            shared.idle.begin_job()
            shared.changed.notify_all()

    def end_job(self, *, has_completed: bool = False) -> None:
        """End a job; after the last one the idle time begins.

        `has_completed`: ComfyUI has run it without an error.
        """
        shared = self._shared
        with shared.changed:
            shared.idle.end_job()
            shared.restarts.note_end_of_job(
                has_completed=has_completed, is_ready=shared.state is State.READY
            )
            shared.changed.notify_all()

    def report_fault(self, job: str, starts: int, reason: str) -> None:
        """Replace a ComfyUI whose machine has made this job fail, or fail if it is unfit.

        `starts` is that of the ComfyUI. The faults of one that was replaced already are ignored.
        """
        shared = self._shared
        with shared.changed:
            if shared.state is State.READY and shared.starts == starts:
                verdict = shared.restarts.after_fault(job, reason)
                shared.move(verdict.state, verdict.reason)

    def drop(self, prompt_id: str) -> None:
        """Remove a prompt from ComfyUI whose handler is gone; call it before `end_job`.

        A ComfyUI that does not answer is replaced, unless other jobs run: they have deadlines.
        """
        shared = self._shared
        with shared.changed:
            process = shared.process if shared.state is State.READY else None
            is_last = shared.idle.jobs <= 1
        if process:
            log(f"the handler of prompt {prompt_id} is gone: removing the prompt from ComfyUI")
            if not process.drop(prompt_id) and is_last:
                self.restart()

    def sleep(self, depth: Depth) -> bool:
        """Sleep now, as after the idle time of that depth. Blocks until the worker sleeps.

        False when a job runs, or one begins meanwhile.
        """
        shared = self._shared
        with shared.changed:
            if shared.idle.jobs:
                return False
            shared.idle.requested_depth = depth
            shared.changed.notify_all()
            shared.changed.wait_for(
                lambda: shared.idle.requested_depth is not depth or self._is_asleep(depth)
            )
            return shared.idle.requested_depth is depth

    def restart(self) -> None:
        """Kill a ComfyUI that hangs; another one is started. Blocks until the death is noted."""
        shared = self._shared
        with shared.changed:
            process, starts = shared.process, shared.starts
            if shared.state is not State.READY or process is None:
                return
            shared.hung_process = process
        log("ComfyUI does not stop its job: restarting it")
        # Without the lock: a process that waits for its GPU may take long to die.
        process.stop(grace_s=0.0)
        with shared.changed:
            shared.changed.wait_for(
                lambda: shared.state is not State.READY or shared.starts != starts
            )

    def stop(self, grace_s: float = 0.0) -> None:
        """Accept no new jobs. ComfyUI may finish its jobs for `grace_s` seconds, then it ends.

        Of several calls, the one that leaves the least time counts.
        """
        shared = self._shared
        with shared.changed:
            shared.drain_until = min(shared.drain_until, time.monotonic() + grace_s)
            if not shared.is_ending:
                shared.move(State.DRAINING)
            shared.changed.notify_all()

    def wait_settled(self, timeout_s: float) -> State:
        """The state once the first start has succeeded or failed, or after `timeout_s` seconds."""
        shared = self._shared
        with shared.changed:
            shared.changed.wait_for(lambda: shared.state.is_settled, timeout_s)
            return shared.state

    def run_benchmark(self) -> BenchmarkResult | str:
        """Wake, and run the benchmark; its result, or why there is none. Blocks until it ends."""
        shared = self._shared
        before = shared.benchmark.last
        self.wake()
        with shared.changed:
            if (jobs := shared.idle.jobs) or shared.state is not State.READY:
                return f"the worker is {shared.state} and has {jobs} jobs: try again later"
            if (last := shared.benchmark.last) and last is not before:
                # The worker has measured it by itself meanwhile, as after its first start.
                return last
            count = shared.benchmark.count
            shared.benchmark.force()
            shared.changed.notify_all()
            shared.changed.wait_for(
                lambda: shared.benchmark.count > count or shared.state not in _SERVING
            )
            if shared.benchmark.count == count or shared.benchmark.last is None:
                return shared.benchmark.failure or f"the worker is {shared.state}"
            return shared.benchmark.failure or shared.benchmark.last

    def last_lines(self) -> list[str]:
        """The last lines that ComfyUI has logged; empty when none runs."""
        process = self._shared.process
        return process.last_lines() if process else []

    def describe(self) -> WorkerStatus:
        """What a handler needs to know: the state, and where ComfyUI and its files are."""
        shared = self._shared
        with shared.changed:
            process = shared.process
            return WorkerStatus(
                state=shared.state,
                starts=shared.starts,
                jobs=shared.idle.jobs,
                cold_start_ms=shared.cold_start_ms,
                failure=shared.restarts.failures.last_reason,
                killed_by=shared.restarts.killed_by,
                base_url=process.base_url if process else "",
                comfyui_version=process.version.text if process else "",
                comfyui_pid=process.pid if process else None,
                prewarmed_pid=shared.prewarmed.pid,
                prefetched_bytes=self.models.read_bytes,
                running_since=self.housekeeper.running_since(),
                device=shared.reports.device,
                failed_nodes=shared.reports.failed_nodes,
                score=shared.benchmark.last.score if shared.benchmark.last else None,
                benchmark=shared.benchmark.last,
                folders=shared.folders,
                unplaced_models=self.models.unplaced,
            )

    def _forget_prompts(self, prompt_ids: Sequence[str]) -> None:
        # A ComfyUI that was started since does not know them.
        if process := self._shared.process:
            process.forget(prompt_ids)

    def _drop_cache(self) -> None:
        if process := self._shared.process:
            process.free()

    def _is_asleep(self, depth: Depth) -> bool:
        """Whether the worker sleeps that deep, or does not run ComfyUI for another reason."""
        shared = self._shared
        match shared.state:
            case State.STARTING:
                return False
            case State.READY:
                return depth is Depth.FREE and shared.idle.models_are_unloaded
            case _:
                is_stopped = shared.process is None
                return is_stopped and (depth < Depth.EXIT or not shared.prewarmed.exists)
