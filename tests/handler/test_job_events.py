"""Every event of a job: as a line of the log, read back, and in the documentation."""

import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from handler.emit import emit
from handler.job_events import (
    EVENT_TYPES,
    ArtifactFailed,
    ArtifactKept,
    ArtifactRemoved,
    ArtifactStored,
    JobCancelled,
    JobCompleted,
    JobEvent,
    JobFailed,
    JobPostponed,
    JobQueued,
    JobReceived,
    JobRepeated,
    JobStoreFailed,
    JobWaiting,
    NodeProgress,
    NodeStarted,
    WebhookDelivered,
    WebhookFailed,
    WeightsArrived,
    WeightsAwaited,
    WorkerReady,
    WorkerStarting,
    decode,
)
from handler.log import logger
from handler.settings import PROJECT

TIMINGS = {"total_ms": 12.5}
EXAMPLES: list[JobEvent] = [
    JobReceived(request_id="r-1", source="direct"),
    JobRepeated(),
    JobPostponed(message="it runs in another invocation"),
    JobStoreFailed(message="the response was not stored", reason="OperationalError"),
    WorkerStarting(),
    WorkerReady(cold_start_ms=5123.4),
    JobQueued(prompt_id="p", nodes=14),
    NodeStarted(
        node_id="96",
        class_type="KSampler",
        title="two\nlines",
        done=4,
        total=14,
        percentage=20.5,
        eta_s=None,
    ),
    WeightsAwaited(file="a.safetensors", done_bytes=4_100_000_000, total_bytes=14_300_000_000),
    WeightsArrived(file="a.safetensors", ms=5123.4),
    NodeProgress(
        node_id="96",
        class_type="KSampler",
        title="",
        time=0.5,
        value=3,
        max=10,
        done=4,
        total=14,
        percentage=30,
        eta_s=12.5,
    ),
    JobWaiting(position=2),
    JobCancelled(
        message="the job was cancelled by a request, at node 3", timings={"total_ms": 1}, cost=0.0
    ),
    ArtifactStored(file="a.mp4", size_bytes=1_234_567, ms=210.4),
    ArtifactFailed(file="a.mp4", reason="S3 refused the upload"),
    ArtifactRemoved(file="r-1/a.mp4"),
    ArtifactKept(reason="S3 refused the clean-up"),
    WebhookDelivered(host="example.com", status=204),
    WebhookFailed(host="example.com", reason="HTTP 500"),
    JobCompleted(timings=TIMINGS, cost=0.25),
    JobFailed(
        error={"type": "OutOfMemory", "message": "m", "retryable": True}, timings=TIMINGS, cost=None
    ),
]


def entry(event: JobEvent) -> dict[str, Any]:
    """The JSON object of the event's log line."""
    line = {"level": event.level, "message": event.log_message(), "service": "lambda-comfyui"}
    return line | {"event": event.name, **event.log_fields()}


@pytest.fixture
def log() -> Iterator[Callable[[], list[str]]]:
    """The lines that the handler logs during the test."""
    stream = io.StringIO()
    (handler,) = logger.handlers
    assert isinstance(handler, logging.StreamHandler)
    before = handler.setStream(stream)
    yield lambda: stream.getvalue().splitlines()
    handler.setStream(before)


def test_every_event_has_an_example() -> None:
    assert {event.name for event in EXAMPLES} == set(EVENT_TYPES)


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: str(event.name))
def test_event_is_read_back_from_its_log_line(
    event: JobEvent, log: Callable[[], list[str]]
) -> None:
    emit(event)

    (line,) = log()
    written = json.loads(line)
    assert decode(written) == event
    assert {name: written.get(name) for name in entry(event)} == entry(event)


def test_event_cannot_be_changed() -> None:
    event = JobQueued(prompt_id="p", nodes=14)

    with pytest.raises(AttributeError, match="cannot be changed"):
        event.nodes = 15  # type: ignore[misc]


def test_event_has_exactly_its_fields() -> None:
    with pytest.raises(TypeError, match="prompt_id, nodes"):
        JobQueued(prompt_id="p")  # type: ignore[call-arg]


def test_events_are_equal_if_class_and_fields_are() -> None:
    assert JobQueued(prompt_id="p", nodes=1) == JobQueued(prompt_id="p", nodes=1)
    assert JobQueued(prompt_id="p", nodes=1) != JobQueued(prompt_id="p", nodes=2)
    assert JobRepeated() != WorkerStarting()


@pytest.mark.parametrize("value", [None, "x", [], {}, 10**400, float("nan"), float("-inf")])
@pytest.mark.parametrize(
    ("event_name", "field"),
    [("worker.ready", "cold_start_ms"), ("job.queued", "nodes"), ("artifact.stored", "ms")],
)
def test_line_with_a_value_of_the_wrong_type_is_not_an_event(
    event_name: str, field: str, value: Any
) -> None:
    (example,) = [event for event in EXAMPLES if event.name == event_name]

    assert decode(entry(example)) is not None
    assert decode(entry(example) | {field: value}) is None


@pytest.mark.parametrize("name", ["unheard.of", "", None, [], {}])
def test_line_without_a_known_event_is_not_an_event(name: Any) -> None:
    assert decode({"message": "m", "event": name}) is None


def test_table_of_events_is_the_code() -> None:
    text = (PROJECT / "docs" / "operating.md").read_text()

    rows = re.findall(r"^\| `([a-z]+\.[a-z]+)` \|(.*?)\|(.*)\|$", text, re.MULTILINE)

    documented = {name: re.findall(r"`(\w+)`", keys) for name, keys, _ in rows}
    assert documented == {
        name: [field for field in event_type.__annotations__ if field != "message"]
        for name, event_type in EVENT_TYPES.items()
    }
    for name, _, description in rows:
        level = EVENT_TYPES[name].level
        assert (f"(level {level})" in description) == (level != "INFO"), name
