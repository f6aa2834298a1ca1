"""What the threads of a worker share: its state, its ComfyUI, its jobs. One condition guards it.

The states and their moves are in runtime/worker/states.py. The thread that supervises ComfyUI is in
supervisor.py, what other threads may ask for in lifecycle.py.
"""

import math
import threading
import time
from collections.abc import Callable

from handler.settings import Settings
from handler.worker_protocol import State
from runtime.hooks import Change
from runtime.log import log
from runtime.worker.benchmark import Benchmark
from runtime.worker.comfyui_process import ComfyUIProcess
from runtime.worker.compile_cache import CompileCache
from runtime.worker.idle import Idle
from runtime.worker.prewarmed_process import Prewarmed
from runtime.worker.restart_policy import RestartPolicy
from runtime.worker.start_reports import StartReports
from runtime.worker.states import check_move


class SharedState:
    """Everything here is guarded by `changed`, which is notified of every change.

    That is a change of the state, of the jobs, a request, or a process that has ended. `on_change`
    gets each change of the state.
    """

    def __init__(self, settings: Settings, on_change: Callable[[Change], None]) -> None:
        self.changed = threading.Condition()
        self.state = State.STARTING
        # When the state began, on the monotonic clock.
        self.since = time.monotonic()
        # On the monotonic clock: jobs may end until then when the worker drains.
        self.drain_until = math.inf
        self.starts = 0
        self.cold_start_ms = 0.0
        self.process: ComfyUIProcess | None = None
        # Of the last start, also when its process is gone.
        self.reports = StartReports()
        # A ComfyUI that `Worker.restart` has killed.
        self.hung_process: ComfyUIProcess | None = None
        self.compile_cache = CompileCache(settings)
        self.prewarmed = Prewarmed(settings, self.notify, self.compile_cache)
        self.idle = Idle(settings)
        self.restarts = RestartPolicy()
        self.benchmark = Benchmark(settings)
        # ComfyUI's folders of files by output type.
        self.folders = {name: settings.comfyui_data / name for name in ("output", "input", "temp")}
        self._on_change = on_change

    @property
    def is_ending(self) -> bool:
        """Whether no new jobs are accepted."""
        return self.state in (State.DRAINING, State.STOPPED)

    def has_job_or_ends(self) -> bool:
        """Whether a run of the worker's own has to give way."""
        return self.idle.jobs > 0 or self.is_ending

    def move(self, state: State, reason: str = "") -> None:
        """Change the state. The reason is logged. Raises IllegalMove."""
        with self.changed:
            check_move(self.state, state)
            now = time.monotonic()
            change = Change(self.state, state, now - self.since, reason)
            if state is not State.STOPPED:
                # Before the state changes: what has an effect is in the log, even if we are killed.
                log(str(change))
            self.state, self.since = state, now
            self._on_change(change)
            self.changed.notify_all()

    def notify(self) -> None:
        """Wake all threads that wait for a change."""
        with self.changed:
            self.changed.notify_all()
