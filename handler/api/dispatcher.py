"""What the API needs to run jobs, and to say how their worker is.

The application writes the job's record first, then calls the dispatcher; both may be repeated.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from events.event_context import Response
from events.job import Job
from handler.start_report import Device, FailedNode
from handler.worker_protocol import BenchmarkResult, State

MIN_RETRY_AFTER_S = 1


class QueueFull(Exception):
    """As many jobs wait as the limit allows; another try may succeed after `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = max(round(retry_after_s), MIN_RETRY_AFTER_S)


class NotOffered(Exception):
    """This front door does not offer what was asked; the message says which one does."""


class Unavailable(Exception):
    """What the job needs does not answer now, for example a queue."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A job, and its request as a JSON text in which its id is filled in."""

    job: Job
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Health:
    """Whether jobs are worked on, and whether a new one would be; `reason` says why not.

    `failed_nodes` are the names of the custom nodes that ComfyUI could not import.
    """

    is_healthy: bool
    is_ready: bool
    reason: str = ""
    failed_nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """The worker as `GET /worker` shows it; see WorkerStatus in handler/worker_protocol.py.

    `workers` are those of a host that has several: the other fields are about all of them then.
    """

    state: State
    starts: int = 0
    jobs: int = 0
    cold_start_ms: float = 0.0
    failure: str = ""
    running_since: float | None = None
    score: float | None = None
    benchmark: BenchmarkResult | None = None
    device: Device | None = None
    failed_nodes: tuple[FailedNode, ...] = ()
    workers: "tuple[WorkerReport, ...]" = ()


# The state of several workers is the one of them that is first here: a job finds the best one.
_STATES_OF_A_POOL = (
    State.READY,
    State.BENCHMARKING,
    State.STARTING,
    State.INACTIVE,
    State.DRAINING,
    State.STOPPED,
)


def pool_report(reports: Sequence[WorkerReport]) -> WorkerReport:
    """The report of all workers of a host, which has at least one."""
    if len(reports) == 1:
        return reports[0]
    states = {report.state for report in reports}
    scores = [report.score for report in reports if report.score is not None]
    since = [report.running_since for report in reports if report.running_since is not None]
    return WorkerReport(
        state=next((state for state in _STATES_OF_A_POOL if state in states), State.FAILED),
        starts=sum(report.starts for report in reports),
        jobs=sum(report.jobs for report in reports),
        cold_start_ms=max(report.cold_start_ms for report in reports),
        failure="; ".join(report.failure for report in reports if report.failure),
        running_since=min(since, default=None),
        # Work that is spread over all of them is done that fast.
        score=round(sum(scores), 4) if scores else None,
        # All of them import the same nodes; each has a device of its own.
        failed_nodes=tuple(dict.fromkeys(node for each in reports for node in each.failed_nodes)),
        workers=tuple(reports),
    )


@dataclass(frozen=True, slots=True)
class LiveEvent:
    """One event of a job; a client that reconnects names the last `id` that it has seen."""

    id: str
    name: str
    data: Mapping[str, Any]


class Dispatcher(Protocol):
    """How jobs are run behind this front door."""

    @property
    def can_stream(self) -> bool:
        """Whether `events` works, and whether the client's disconnect is noticed."""

    async def run(self, accepted: Accepted) -> Response:
        """Run the job and return the documented response.

        One that takes too long for this front door goes on; the response is then that of a job that
        has not ended. Raises QueueFull, Unavailable.
        """

    async def accept(self, accepted: Accepted) -> None:
        """Put the job into a queue that outlives this process. The same job may come again.

        Raises QueueFull, NotOffered, Unavailable.
        """

    def events(self, request_id: str, after: str) -> AsyncIterator[LiveEvent | None]:
        """The events of a job after the one with the id `after` ("": from now on).

        None stands for a while without any. It ends with the job. Raises NotOffered.
        """

    def queue_position(self, request_id: str) -> int | None:
        """How many jobs are before this one; None if that is not known."""

    def waiting(self) -> int | None:
        """How many jobs wait; None if that is not known."""

    def cost(self) -> float | None:
        """What the jobs of this front door have cost since it began; None if that is not known."""

    async def worker(self) -> WorkerReport | None:
        """The state of the worker; None if this front door has none."""

    async def health(self) -> Health:
        """How the front door and its worker are."""
