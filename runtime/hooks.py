"""The changes of a worker's state, and how hooks get to know them.

`WORKER_HOOKS` names classes, `module:Class` separated by commas. Each class is instantiated once,
without arguments, when the worker begins its first start. Hooks run one after the other in a thread
of the worker's process, so they must be quick. A hook that raises is logged and changes nothing.

Hooks know the states of the worker and nothing else. How a job ends (response, webhook, log) is
decided in handler/generate.py. The worker's own log line for a change is written by
runtime/worker/shared_state.py, before the change has any effect.
"""

import importlib
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from handler.worker_protocol import State
from runtime.errors import UsageError

Write = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Change:
    """One change of state: how long the old state lasted, in seconds, and why it ended."""

    old: State
    new: State
    seconds: float
    reason: str

    def __str__(self) -> str:
        reason = f": {self.reason}" if self.reason else ""
        return f"worker {self.old} -> {self.new} after {self.seconds:.1f} s{reason}"


class Hooks:
    """A method for each state that a worker can change to. Override those that you need."""

    def on_starting(self, change: Change) -> None:
        """ComfyUI is being started again: after a sleep, a failed start, or its death.

        There is no call for the first start: the class is instantiated then.
        """

    def on_benchmarking(self, change: Change) -> None:
        """The worker measures its score. A job that arrives ends that."""

    def on_ready(self, change: Change) -> None:
        """ComfyUI is ready for jobs."""

    def on_inactive(self, change: Change) -> None:
        """ComfyUI is stopped. The next event starts it."""

    def on_draining(self, change: Change) -> None:
        """The worker accepts no new jobs and ends soon."""

    def on_failed(self, change: Change) -> None:
        """The machine is unfit for jobs, or ComfyUI cannot be started, or dies again and again.

        The container must be replaced.
        """


class StateMetrics(Hooks):
    """CloudWatch metrics as log lines (embedded metric format), for autoscaling and alarms."""

    def _metrics(self, change: Change) -> None:
        # Imported at the first change after a start, while ComfyUI boots: nothing waits for it.
        from aws_lambda_powertools.metrics import MetricUnit, single_metric  # noqa: PLC0415

        with single_metric(
            name=f"Worker{change.new.capitalize()}",
            unit=MetricUnit.Count,
            value=1,
            namespace="lambda-comfyui",
        ) as metric:
            metric.add_dimension(name="service", value="lambda-comfyui")
            metric.add_metadata(key="previous_state_seconds", value=round(change.seconds, 3))

    on_ready = on_inactive = on_failed = _metrics


class PyWorkerLines(Hooks):
    """The lines that a Vast.ai PyWorker waits for in the log file that it follows."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_ready(self, change: Change) -> None:
        self.note_ready()

    def on_failed(self, change: Change) -> None:
        self.note_failed()

    def note_ready(self) -> None:
        """Jobs may be sent."""
        self._append("BACKENDS_READY")

    def note_failed(self) -> None:
        """The machine must be replaced: the PyWorker reports an error for good."""
        self._append("BACKEND_UNRECOVERABLE")

    def _append(self, line: str) -> None:
        with self._path.open("a") as file:
            file.write(line + "\n")


class HookDispatcher:
    """Calls the hooks for every change, in order, in a thread of its own."""

    def __init__(self, hooks: Sequence[Hooks], write: Write) -> None:
        self._hooks, self._write = hooks, write
        self._changes: queue.SimpleQueue[Change | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, change: Change) -> None:
        """Queue a change for the hooks. May be called before `start`."""
        self._changes.put(change)

    def stop(self, wait_s: float) -> None:
        """Wait until the hooks have had every change, `wait_s` seconds at most."""
        self._changes.put(None)
        self._thread.join(wait_s)

    def _run(self) -> None:
        while (change := self._changes.get()) is not None:
            call_hooks(self._hooks, change, self._write)


class HookError(UsageError):
    """WORKER_HOOKS names a class that cannot be imported or instantiated."""


def load_hooks(names: Sequence[str]) -> list[Hooks]:
    """Instantiate the classes of WORKER_HOOKS (`module:Class` each).

    Raises HookError that names the entry and what is wrong with it.
    """
    return [_load(name) for name in names]


def call_hooks(hooks: Sequence[Hooks], change: Change, write: Write) -> None:
    """Call `on_<new state>` of every hook that has it; an exception becomes a line for `write`."""
    for hook in hooks:
        method = getattr(hook, f"on_{change.new}", None)
        if method is None:
            continue
        try:
            method(change)
        except Exception as error:
            write(f"hook {type(hook).__name__} raised {type(error).__name__}: {error}")


def _load(name: str) -> Hooks:
    module, _, attribute = name.partition(":")
    try:
        hook: Hooks = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise HookError(f"WORKER_HOOKS {name!r}: {error}; expected module:Class") from error
    return hook
