"""What can happen to a job from its request to its end: one frozen class an event.

Who gets an event is decided in emit.py. In the log an event is one JSON object a line: `event` is
the class's `name`, and its fields are keys beside it. `decode` reads such a line in another
process. docs/operating.md lists the events; a test compares the two.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, dataclass_transform, get_origin

Level = Literal["INFO", "WARNING", "ERROR"]


@dataclass_transform(kw_only_default=True, frozen_default=True)
class JobEvent:
    """The base class. A subclass is one event, and its annotations are its fields.

    It behaves as a frozen dataclass does. `dataclass` itself compiles six functions a class, which
    would take 8 ms of the start of each handler process.
    """

    name: ClassVar[str]
    level: ClassVar[Level] = "INFO"

    def __init__(self, **values: Any) -> None:
        fields = type(self).__annotations__
        if values.keys() != fields.keys():
            raise TypeError(f"{self.name} has the fields {', '.join(fields)}")
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{self.name} cannot be changed")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({vars(self)})"

    def log_message(self) -> str:
        """The sentence of the log line: the field `message` where a class has one."""
        return str(getattr(self, "message", self.name))

    def log_fields(self) -> dict[str, Any]:
        """The keys of the log line beside `event` and `message`; `cost` only if it is known."""
        return {
            name: value
            for name, value in vars(self).items()
            if name != "message" and (name, value) != ("cost", None)
        }


class JobReceived(JobEvent):
    """A request came in; `source` is the event source's name."""

    name = "job.received"
    request_id: str
    source: str

    def log_message(self) -> str:
        return "job received"


class JobRepeated(JobEvent):
    """The same request was answered before: the stored response is returned, nothing runs."""

    name = "job.repeated"

    def log_message(self) -> str:
        return "the request was answered before, its stored response is returned"


class JobPostponed(JobEvent):
    """Another invocation runs the same request."""

    name = "job.postponed"
    message: str


class JobStoreFailed(JobEvent):
    """The store of jobs did not do what was asked; `message` names what that costs."""

    name = "jobs.failed"
    level = "WARNING"
    message: str
    reason: str


class WorkerStarting(JobEvent):
    """A cold start: the job waits for ComfyUI."""

    name = "worker.starting"

    def log_message(self) -> str:
        return "cold start: waiting for ComfyUI"


class WorkerReady(JobEvent):
    """The cold start is over."""

    name = "worker.ready"
    cold_start_ms: float

    def log_message(self) -> str:
        return "ComfyUI is ready"


class JobQueued(JobEvent):
    """ComfyUI has accepted the workflow, whose outputs need so many nodes."""

    name = "job.queued"
    prompt_id: str
    nodes: int

    def log_message(self) -> str:
        return "job queued"


class JobWaiting(JobEvent):
    """The workflow waits in ComfyUI's queue, behind `position` others."""

    name = "job.waiting"
    position: int

    def log_message(self) -> str:
        return f"waiting behind {self.position} {'job' if self.position == 1 else 'jobs'}"


class WeightsAwaited(JobEvent):
    """The running node waits for a model file that is being downloaded. At most two a second."""

    name = "weights.awaited"
    file: str
    done_bytes: int
    total_bytes: int

    def log_message(self) -> str:
        done, total = self.done_bytes / 1e9, self.total_bytes / 1e9
        return f"waiting for weights, {done:.1f} of {total:.1f} GB"


class WeightsArrived(JobEvent):
    """The model file is complete; the node has waited `ms` for it."""

    name = "weights.arrived"
    file: str
    ms: float

    def log_message(self) -> str:
        return f"{self.file} is there, after {self.ms / 1000:.1f} s"


class NodeStarted(JobEvent):
    """A node began. `done` counts the nodes before it, cached ones included.

    `percentage` is that of the whole graph, 0 to 100; `eta_s` an estimate of the seconds left.
    """

    name = "node.started"
    node_id: str
    class_type: str
    title: str
    done: int
    total: int
    percentage: float
    eta_s: float | None

    def log_message(self) -> str:
        return f"node {self.node_id} started"


class NodeProgress(JobEvent):
    """A step of the running node; `time`: seconds since the run began.

    At most two a second, and the first time that a node reports its last step.

    The other fields are those of NodeStarted. `node_id` is None at the end of a run that succeeded,
    where the percentage is 100.
    """

    name = "node.progress"
    node_id: str | None
    class_type: str
    title: str
    time: float
    value: float
    max: float
    done: int
    total: int
    percentage: float
    eta_s: float | None

    def log_message(self) -> str:
        return f"{self.percentage} %"


class ArtifactStored(JobEvent):
    """A file of the job is in the bucket."""

    name = "artifact.stored"
    file: str
    size_bytes: int
    ms: float

    def log_message(self) -> str:
        return f"stored {self.file}"


class ArtifactFailed(JobEvent):
    """A file of the job did not reach the bucket."""

    name = "artifact.failed"
    level = "WARNING"
    file: str
    reason: str

    def log_message(self) -> str:
        return "an artifact was not stored"


class ArtifactRemoved(JobEvent):
    """A file that an earlier attempt at the same job left in the bucket was deleted."""

    name = "artifact.removed"
    file: str

    def log_message(self) -> str:
        return "removed a file of an earlier attempt"


class ArtifactKept(JobEvent):
    """The bucket was not searched for files of an earlier attempt, or not to the end."""

    name = "artifact.kept"
    reason: str

    def log_message(self) -> str:
        return "files of an earlier attempt may be left in the bucket"


class WebhookDelivered(JobEvent):
    """The webhook took the call; `status` is its HTTP status."""

    name = "webhook.delivered"
    host: str
    status: int

    def log_message(self) -> str:
        return f"webhook on {self.host} called"


class WebhookFailed(JobEvent):
    """The webhook was not delivered, and is not tried again."""

    name = "webhook.failed"
    level = "WARNING"
    host: str
    reason: str

    def log_message(self) -> str:
        return "the webhook was not delivered"


class JobCompleted(JobEvent):
    """The job has succeeded; `timings` is that of the response.

    `cost` of this event, and of the other two, is None without PRICE_PER_HOUR.
    """

    name = "job.completed"
    timings: dict[str, float]
    cost: float | None

    def log_message(self) -> str:
        return "job completed"


class JobCancelled(JobEvent):
    """The job was cancelled; `timings` is that of the response."""

    name = "job.cancelled"
    message: str
    timings: dict[str, float]
    cost: float | None


class JobFailed(JobEvent):
    """The job has failed; `error` and `timings` are those of the response."""

    name = "job.failed"
    level = "ERROR"
    error: dict[str, Any]
    timings: dict[str, float]
    cost: float | None

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
        return event_type(
            **{
                name: _typed(entry.get(name), expected)
                for name, expected in event_type.__annotations__.items()
            }
        )
    except (TypeError, OverflowError):
        return None


def _typed(value: Any, expected: Any) -> Any:
    if expected == float | None:
        return None if value is None else _typed(value, float)
    if expected is float and isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    if not isinstance(value, dict if get_origin(expected) is dict else expected):
        raise TypeError(f"expected {expected}, got {type(value).__name__}")
    if isinstance(value, int | float) and not math.isfinite(value):
        raise TypeError("expected a finite number")
    return value
