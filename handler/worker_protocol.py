"""The messages between handlers and the worker: each is a class here.

A handler connects to the Unix socket SOCKET_NAME in WORKER_DIR and sends requests; the worker sends
answers, each with the `id` of its request. An open connection is a lease: the worker knows that a
handler needs it. A connection has one job at most, and a job ends with its connection.

How a message is written as a line is decided in handler/worker_codec.py, when the worker moves from
state to state in runtime/worker/supervisor.py, what it does with a request in
runtime/worker/control.py, how long a handler waits in handler/worker_client.py.
"""

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import ClassVar

from handler.start_report import Device, FailedNode

SOCKET_NAME = "worker.sock"
# What the worker has logged since it started; a handler quotes it when the worker has ended.
LOG_NAME = "worker.log"
# The id of an answer to a line that has no readable id of its own.
NO_ID = 0


class State(StrEnum):
    """The states of a worker. `ready` and `inactive` are the documented two."""

    @property
    def is_settled(self) -> bool:
        """Whether it lasts: no start or benchmark is under way."""
        return self not in (State.STARTING, State.BENCHMARKING)

    STARTING = "starting"
    BENCHMARKING = "benchmarking"
    READY = "ready"
    INACTIVE = "inactive"
    FAILED = "failed"
    DRAINING = "draining"
    STOPPED = "stopped"


class Depth(IntEnum):
    """How deep an idle worker sleeps; each depth includes the ones before it."""

    AWAKE = 0
    FREE = 1  # the models are out of the GPU's memory
    STOP = 2  # ComfyUI has ended, a prewarmed Python stays
    EXIT = 3  # no process stays

    @property
    def word(self) -> str:
        """The name in messages and on the command line."""
        return self.name.lower()


# The depths that can be asked for, by their words.
DEPTHS = {depth.word: depth for depth in (Depth.FREE, Depth.STOP, Depth.EXIT)}


class ProtocolError(ValueError):
    """A line that is no message of this module. The message names what is wrong and expected."""

    def __init__(self, message: str, message_id: int = NO_ID) -> None:
        super().__init__(message)
        self.message_id = message_id


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """One benchmark: `score` = 100 / `seconds`, of `runs` runs their median.

    `at` is Unix time. Scores are comparable if `gpu` and `workflow_hash` are the same. `warning`
    says that this one is far from the others, '' if it is not.
    """

    at: float
    score: float
    seconds: float
    runs: int
    workflow: str
    workflow_hash: str
    gpu: str
    driver: str
    comfyui: str
    torch: str
    warning: str


@dataclass(frozen=True)
class WorkerStatus:
    """What a worker is and has: its state, and where its ComfyUI and the files of that are."""

    state: State
    starts: int
    jobs: int
    cold_start_ms: float
    # Why the last start failed, or the last ComfyUI died; '' when neither has happened.
    failure: str
    # The prompt that ran when the last ComfyUI ended by itself; '' when none did.
    killed_by: str
    # '' and None where no process runs.
    base_url: str
    # As ComfyUI gives it, once it is ready; '' before, and where none runs.
    comfyui_version: str
    comfyui_pid: int | None
    prewarmed_pid: int | None
    prefetched_bytes: int
    # When the oldest running job began, in seconds since the epoch; None when no job runs.
    running_since: float | None
    # Of the last benchmark; None before the first one.
    score: float | None
    benchmark: BenchmarkResult | None
    # Of the last start of ComfyUI; None before it was seen.
    device: Device | None
    failed_nodes: tuple[FailedNode, ...]
    # By ComfyUI's output types: output, input, temp.
    folders: dict[str, Path]
    # The names of models of manifests for which the disk takes no file, each with the reason.
    unplaced_models: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Message:
    """What all messages have: an id, which an answer shares with its request."""

    NAME: ClassVar[str]
    id: int


@dataclass(frozen=True, kw_only=True)
class ModelUrl:
    """A model that a request names by its URL, which may hold secrets.

    `folder` is its kind, `name` the one that it gets on the worker.
    """

    url: str = field(repr=False)
    folder: str
    name: str


@dataclass(frozen=True, kw_only=True)
class Wake(Message):
    """Begin a job, and have ComfyUI ready for it. The files named `models` are read ahead.

    Those of `model_urls`, which are among them, are downloaded.

    Answered by a Status at once, and by a second one when ComfyUI is ready or its start has failed,
    unless the first was final.
    """

    NAME: ClassVar[str] = "wake"
    models: tuple[str, ...]
    model_urls: tuple[ModelUrl, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AnnouncePrompt(Message):
    """The job's prompt: if the connection ends before the job, ComfyUI drops it. No answer."""

    NAME: ClassVar[str] = "announce_prompt"
    prompt_id: str


@dataclass(frozen=True, kw_only=True)
class EndJob(Message):
    """End the job of this connection. No answer.

    `has_completed`: ComfyUI has run it without an error, so the machine is sound.
    """

    NAME: ClassVar[str] = "end_job"
    has_completed: bool = False


@dataclass(frozen=True, kw_only=True)
class ReportFault(Message):
    """The job with the id `job` has failed through a fault of the machine. No answer.

    `starts` is that of the ComfyUI that ran it.
    """

    NAME: ClassVar[str] = "report_fault"
    job: str
    starts: int
    reason: str


class GetState(Message):
    """Answered by a Status."""

    NAME: ClassVar[str] = "state"


class GetLog(Message):
    """Answered by LogLines: what ComfyUI has logged last."""

    NAME: ClassVar[str] = "log"


@dataclass(frozen=True, kw_only=True)
class Sleep(Message):
    """Sleep now instead of after the idle time of that depth.

    Answered by a Status when the worker sleeps, by Refused while a job runs.
    """

    NAME: ClassVar[str] = "sleep"
    depth: Depth


class Drain(Message):
    """Take nothing new, and end when the running jobs have ended. Answered by a Status at once."""

    NAME: ClassVar[str] = "drain"


class Restart(Message):
    """Replace a ComfyUI that hangs. Answered by a Status when the old one has ended."""

    NAME: ClassVar[str] = "restart"


class RunBenchmark(Message):
    """Run the benchmark now. Answered by BenchmarkDone, or by Refused while a job runs."""

    NAME: ClassVar[str] = "run_benchmark"


@dataclass(frozen=True, kw_only=True)
class Status(Message):
    """How the worker is. Another answer to the same request follows unless this one is final."""

    NAME: ClassVar[str] = "status"
    is_final: bool
    worker: WorkerStatus


@dataclass(frozen=True, kw_only=True)
class BenchmarkDone(Message):
    """The result of a benchmark."""

    NAME: ClassVar[str] = "benchmark_done"
    result: BenchmarkResult


@dataclass(frozen=True, kw_only=True)
class LogLines(Message):
    """Log lines, the newest last."""

    NAME: ClassVar[str] = "log_lines"
    lines: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Refused(Message):
    """The request was not carried out, and why."""

    NAME: ClassVar[str] = "refused"
    reason: str


Request = (
    Wake
    | AnnouncePrompt
    | EndJob
    | ReportFault
    | GetState
    | GetLog
    | Sleep
    | Drain
    | Restart
    | RunBenchmark
)
Answer = Status | BenchmarkDone | LogLines | Refused
