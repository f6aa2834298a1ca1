"""What a worker tells when its state changes, and how other people's code gets to hear it.

`WORKER_HOOKS` names classes, `module:Class` separated by commas. Each is made once, without
arguments, as the worker begins its first start. Hooks run one after the other in a thread of the
worker's process: be quick. One that raises is logged and changes nothing.
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
    """One change of state: how long the old one lasted, in seconds, and why it ended."""

    old: State
    new: State
    seconds: float
    reason: str


class Hooks:
    """What can be heard; override what you need."""

    def on_starting(self, change: Change) -> None:
        """ComfyUI is being started again: after a sleep, a failed start, or its death."""

    def on_ready(self, change: Change) -> None:
        """ComfyUI serves."""

    def on_inactive(self, change: Change) -> None:
        """ComfyUI is stopped; the next event starts it."""

    def on_draining(self, change: Change) -> None:
        """Nothing new is taken, and everything ends soon."""

    def on_failed(self, change: Change) -> None:
        """ComfyUI cannot be started, or dies all the time; the container must be replaced."""


class StateLines(Hooks):
    """A line in the log for each change."""

    def __init__(self, write: Write) -> None:
        self._write = write

    def _line(self, change: Change) -> None:
        reason = f": {change.reason}" if change.reason else ""
        self._write(f"worker {change.old} -> {change.new} after {change.seconds:.1f} s{reason}")

    on_starting = on_ready = on_inactive = on_draining = on_failed = _line


class StateMetrics(Hooks):
    """CloudWatch metrics as log lines (embedded metric format): what an autoscaler looks at."""

    def _metrics(self, change: Change) -> None:
        # Imported at the first change after a start: ComfyUI boots meanwhile, nobody waits.
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
        self._append("BACKENDS_READY")

    def on_failed(self, change: Change) -> None:
        self._append("BACKEND_UNRECOVERABLE")

    def _append(self, line: str) -> None:
        with self._path.open("a") as file:
            file.write(line + "\n")


class HookDispatcher:
    """Tells the hooks of every change, one after the other, in a thread of its own."""

    def __init__(self, hooks: Sequence[Hooks], write: Write) -> None:
        self._hooks, self._write = hooks, write
        self._changes: queue.SimpleQueue[Change | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, change: Change) -> None:
        """Have it told; also before `start`."""
        self._changes.put(change)

    def stop(self, wait_s: float) -> None:
        """Wait until all is told, `wait_s` at most."""
        self._changes.put(None)
        self._thread.join(wait_s)

    def _run(self) -> None:
        while (change := self._changes.get()) is not None:
            tell(self._hooks, change, self._write)


class HookError(UsageError):
    """WORKER_HOOKS names something that is not there."""


def load_hooks(names: Sequence[str]) -> list[Hooks]:
    """The user's hooks. Raises HookError that names the entry that cannot be used."""
    return [_load(name) for name in names]


def tell(hooks: Sequence[Hooks], change: Change, write: Write) -> None:
    """Call the method for this change on every hook."""
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
        made: Hooks = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise HookError(f"WORKER_HOOKS {name!r}: {error}; expected module:Class") from error
    return made
