"""What can happen to a job on its way: one frozen class an event.

Who gets an event is decided in emit.py. In the log an event is one JSON object a line: `event` is
the class's `name`, and its fields are keys beside it. `decode` reads such a line in another
process. docs/operating.md lists the events; a test compares the two.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, get_origin

Level = Literal["INFO", "WARNING", "ERROR"]


@dataclass(frozen=True)
class JobEvent:
    """The base class. A subclass is one event; `message` is its sentence in the log."""

    name: ClassVar[str]
    level: ClassVar[Level] = "INFO"

    def log_message(self) -> str:
        """The sentence of the log line: the field `message` where a class has one."""
        return str(getattr(self, "message", self.name))

    def log_fields(self) -> dict[str, Any]:
        """The keys of the log line beside `event` and `message`."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "message"}


@dataclass(frozen=True)
class JobReceived(JobEvent):
    """A request came in; `source` is the event source's name."""

    name: ClassVar = "job.received"
    request_id: str
    source: str

    def log_message(self) -> str:
        return "job received"


@dataclass(frozen=True)
class JobRepeated(JobEvent):
    """The same request was answered before: the stored response is returned, nothing runs."""

    name: ClassVar = "job.repeated"

    def log_message(self) -> str:
        return "the request was answered before, its stored response is returned"


@dataclass(frozen=True)
class JobPostponed(JobEvent):
    """Another invocation runs the same request."""

    name: ClassVar = "job.postponed"
    message: str


@dataclass(frozen=True)
class JobStoreFailed(JobEvent):
    """The store of jobs did not do what was asked; `message` names what that costs."""

    name: ClassVar = "jobs.failed"
    level: ClassVar[Level] = "WARNING"
    message: str
    reason: str


@dataclass(frozen=True)
class WorkerStarting(JobEvent):
    """A cold start: the job waits for ComfyUI."""

    name: ClassVar = "worker.starting"

    def log_message(self) -> str:
        return "cold start: waiting for ComfyUI"


@dataclass(frozen=True)
class WorkerReady(JobEvent):
    """The cold start is over."""

    name: ClassVar = "worker.ready"
    cold_start_ms: float

    def log_message(self) -> str:
        return "ComfyUI is ready"


@dataclass(frozen=True)
class JobQueued(JobEvent):
    """ComfyUI has accepted the workflow, which has so many nodes."""

    name: ClassVar = "job.queued"
    prompt_id: str
    nodes: int

    def log_message(self) -> str:
        return "job queued"


@dataclass(frozen=True)
class NodeStarted(JobEvent):
    """A node began. `done` counts it and those before it, cached ones included."""

    name: ClassVar = "node.started"
    node_id: str
    class_type: str
    title: str
    done: int
    total: int

    def log_message(self) -> str:
        return f"node {self.node_id} started"


@dataclass(frozen=True)
class NodeProgress(JobEvent):
    """A step of the running node, at most two a second; `time`: seconds since the run began."""

    name: ClassVar = "node.progress"
    node_id: str | None
    time: float
    value: float
    max: float
    percentage: float

    def log_message(self) -> str:
        return f"{self.percentage} %"


@dataclass(frozen=True)
class ArtifactStored(JobEvent):
    """A file of the job is in the bucket."""

    name: ClassVar = "artifact.stored"
    file: str
    size_bytes: int
    ms: float

    def log_message(self) -> str:
        return f"stored {self.file}"


@dataclass(frozen=True)
class ArtifactFailed(JobEvent):
    """A file of the job did not reach the bucket."""

    name: ClassVar = "artifact.failed"
    level: ClassVar[Level] = "WARNING"
    file: str
    reason: str

    def log_message(self) -> str:
        return "an artifact was not stored"


@dataclass(frozen=True)
class ArtifactRemoved(JobEvent):
    """A file that an earlier attempt at the same job left in the bucket was deleted."""

    name: ClassVar = "artifact.removed"
    file: str

    def log_message(self) -> str:
        return "removed a file of an earlier attempt"


@dataclass(frozen=True)
class ArtifactKept(JobEvent):
    """The bucket was not searched for files of an earlier attempt, or not to the end."""

    name: ClassVar = "artifact.kept"
    reason: str

    def log_message(self) -> str:
        return "files of an earlier attempt may be left in the bucket"


@dataclass(frozen=True)
class WebhookDelivered(JobEvent):
    """The webhook took the call; `status` is its HTTP status."""

    name: ClassVar = "webhook.delivered"
    host: str
    status: int

    def log_message(self) -> str:
        return f"webhook on {self.host} called"


@dataclass(frozen=True)
class WebhookFailed(JobEvent):
    """The webhook was not delivered, and is not tried again."""

    name: ClassVar = "webhook.failed"
    level: ClassVar[Level] = "WARNING"
    host: str
    reason: str

    def log_message(self) -> str:
        return "the webhook was not delivered"


@dataclass(frozen=True)
class JobCompleted(JobEvent):
    """The job has succeeded; `timings` is that of the response."""

    name: ClassVar = "job.completed"
    timings: dict[str, float]

    def log_message(self) -> str:
        return "job completed"


@dataclass(frozen=True)
class JobFailed(JobEvent):
    """The job has failed; `error` and `timings` are those of the response."""

    name: ClassVar = "job.failed"
    level: ClassVar[Level] = "ERROR"
    error: dict[str, Any]
    timings: dict[str, float]

    def log_message(self) -> str:
        return str(self.error.get("message"))


EVENT_TYPES: Mapping[str, type[JobEvent]] = {
    event_type.name: event_type for event_type in JobEvent.__subclasses__()
}


def decode(entry: Mapping[str, Any]) -> JobEvent | None:
    """The event of a log line that was read as a JSON object.

    None where the line is not an event, or has a field that is not of the class's type.
    """
    event_type = EVENT_TYPES.get(str(entry.get("event")))
    if event_type is None:
        return None
    try:
        return event_type(**{f.name: _typed(entry.get(f.name), f.type) for f in fields(event_type)})
    except (TypeError, OverflowError):
        return None


def _typed(value: Any, expected: Any) -> Any:
    if expected is float and isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    if not isinstance(value, dict if get_origin(expected) is dict else expected):
        raise TypeError(f"expected {expected}, got {type(value).__name__}")
    if isinstance(value, int | float) and not math.isfinite(value):
        raise TypeError("expected a finite number")
    return value
