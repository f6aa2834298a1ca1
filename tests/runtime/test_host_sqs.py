"""The poller on a real queue (moto's server): which messages are deleted or go back, and when."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from events.sqs_visibility import CALLER_HIDES_MESSAGES
from runtime.lambda_host.destination import FailedEvent, destination_of
from runtime.lambda_host.failures import Failure, InvocationResult
from runtime.lambda_host.function import Function
from runtime.lambda_host.host import LambdaHost
from runtime.lambda_host.sqs_event import failed_messages
from runtime.lambda_host.sqs_poller import PollerRules, SqsPoller
from runtime.lambda_host.sqs_queue import Message, QueueError, SqsQueue
from tests.aws import moto_client
from tests.conftest import WebhookReceiver
from tests.processes import is_running, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(90),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def sqs() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch, moto_client(patch, "sqs") as client:
        yield client


class Queue:
    """A queue, as a sender and an operator use it."""

    def __init__(self, sqs: Any, name: str, **attributes: str) -> None:
        self._sqs = sqs
        self.url = sqs.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]

    @property
    def arn(self) -> str:
        return str(self._attributes()["QueueArn"])

    def send(self, **action: Any) -> None:
        self._sqs.send_message(QueueUrl=self.url, MessageBody=json.dumps(action))

    def visible(self) -> int:
        return int(self._attributes()["ApproximateNumberOfMessages"])

    def hidden(self) -> int:
        return int(self._attributes()["ApproximateNumberOfMessagesNotVisible"])

    def is_empty(self) -> bool:
        return self.visible() == self.hidden() == 0

    def take(self) -> list[Any]:
        answer = self._sqs.receive_message(QueueUrl=self.url, MaxNumberOfMessages=10)
        return [json.loads(message["Body"]) for message in answer.get("Messages", [])]

    def end_open_polls(self) -> None:
        """A poll returns when a message arrives, which saves a second in every test."""
        with suppress(ClientError):
            for _ in range(3):
                self.send()

    def _attributes(self) -> Any:
        answer = self._sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=["All"])
        return answer["Attributes"]


@pytest.fixture
def queue(sqs: Any, request: pytest.FixtureRequest) -> Queue:
    return Queue(sqs, request.node.name[:80].partition("[")[0])


class Source(SqsQueue):
    """Records that the first poll has begun, delays polls until they may begin, counts `hide`."""

    def __init__(self, url: str) -> None:
        super().__init__(url, connections=4)
        self.is_polled, self.may_receive = threading.Event(), threading.Event()
        self.hides = 0

    def receive(self, count: int, *, visibility_s: int) -> list[Message]:
        self.is_polled.set()
        self.may_receive.wait()
        return super().receive(count, visibility_s=visibility_s)

    def hide(self, messages: Sequence[Message], seconds: Sequence[float]) -> None:
        super().hide(messages, seconds)
        self.hides += 1


class Running:
    """A running host with its poller."""

    def __init__(self, host: LambdaHost, source: Source, poller: SqsPoller) -> None:
        self.host, self.source, self._poller = host, source, poller

    def stop(self, *, drain_s: float) -> None:
        self._poller.stop()
        self.host.drain(drain_s)
        self.host.close(0.2)
        assert self._poller.join(30)


@pytest.fixture
def states() -> list[str]:
    return []


Poll = Callable[..., Running]


@pytest.fixture
def poll(states: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Poll]:
    monkeypatch.setattr("runtime.lambda_host.sqs_queue.LONG_POLL_S", 1)
    with ExitStack() as stack:

        def poll(
            queue: Queue, *, concurrency: int = 1, holds_polls: bool = False, **rules: Any
        ) -> Running:
            function = Function(
                handler="tests.runtime.host_handlers.acts",
                environ=os.environ,
                concurrency=concurrency,
            )
            host = stack.enter_context(LambdaHost(function, on_line=lambda _: None))
            source = Source(queue.url)
            if not holds_polls:
                source.may_receive.set()
            stack.callback(source.close)
            poller = SqsPoller(
                host,
                source,
                PollerRules(**rules),
                concurrency=concurrency,
                timeout_s=60,
                on_state=states.append,
            )
            poller.start()
            running = Running(host, source, poller)

            def stop() -> None:
                poller.stop()
                source.may_receive.set()
                queue.end_open_polls()
                running.stop(drain_s=0)

            stack.callback(stop)
            return running

        yield poll


def test_message_whose_job_has_ended_is_deleted(poll: Poll, queue: Queue, tmp_path: Path) -> None:
    poll(queue)

    queue.send(marks=str(tmp_path), name="a")

    assert wait_until((tmp_path / "a.end").exists)
    assert wait_until(queue.is_empty)


def test_event_has_the_shape_that_lambda_gives_it(
    poll: Poll, queue: Queue, sqs: Any, tmp_path: Path
) -> None:
    body = json.dumps({"keep": str(tmp_path / "event")})
    sqs.send_message(
        QueueUrl=queue.url,
        MessageBody=body,
        MessageAttributes={
            "user": {"DataType": "String", "StringValue": "7"},
            "key": {"DataType": "Binary", "BinaryValue": b"\x00\x01"},
        },
    )

    poll(queue)

    assert wait_until(lambda: (tmp_path / "event").exists() and queue.is_empty())
    (record,) = json.loads((tmp_path / "event").read_text())["Records"]
    assert len(record.pop("messageId")) == 36
    assert record.pop("receiptHandle")
    assert len(record.pop("md5OfBody")) == len(record.pop("md5OfMessageAttributes")) == 32
    attributes = record.pop("attributes")
    assert attributes["ApproximateReceiveCount"] == "1"
    assert {"SentTimestamp", "SenderId", "ApproximateFirstReceiveTimestamp"} < set(attributes)
    assert record == {
        "body": body,
        "messageAttributes": {
            "user": {
                "stringValue": "7",
                "stringListValues": [],
                "binaryListValues": [],
                "dataType": "String",
            },
            "key": {
                "binaryValue": "AAE=",
                "stringListValues": [],
                "binaryListValues": [],
                "dataType": "Binary",
            },
        },
        "eventSource": "aws:sqs",
        "eventSourceARN": queue.arn,
        "awsRegion": "us-east-1",
    }


def test_only_the_failed_message_of_a_batch_goes_back(
    poll: Poll, queue: Queue, tmp_path: Path
) -> None:
    for name, do in (("a", "ok"), ("b", "fail"), ("c", "ok")):
        queue.send(marks=str(tmp_path), name=name, do=do)

    poll(queue, batch_size=10, back_off_s=60)

    assert wait_until(lambda: queue.hidden() == 1 and queue.visible() == 0)
    assert wait_until((tmp_path / "c.end").exists)


def test_messages_of_several_pollers_run_at_once(poll: Poll, queue: Queue, tmp_path: Path) -> None:
    for name in "abc":
        # None of them ends before all have begun.
        queue.send(marks=str(tmp_path), name=name, together=3)

    poll(queue, concurrency=3)

    assert wait_until(lambda: len(list(tmp_path.glob("*.end"))) == 3)
    assert wait_until(queue.is_empty)


def test_message_stays_hidden_for_as_long_as_its_job_runs(
    poll: Poll, queue: Queue, tmp_path: Path
) -> None:
    release = tmp_path / "release"
    queue.send(marks=str(tmp_path), name="slow", until=str(release))

    running = poll(queue, concurrency=2, visibility_s=5)

    # There are three renewals in the time for which it was hidden when it was received.
    assert wait_until(lambda: running.source.hides >= 4)
    release.touch()
    assert wait_until((tmp_path / "slow.end").exists)
    assert wait_until(queue.is_empty)
    assert len((tmp_path / "slow.begin").read_text().splitlines()) == 1


def test_function_hears_that_its_messages_are_kept_hidden(
    poll: Poll, queue: Queue, tmp_path: Path
) -> None:
    queue.send(keep_client_context=str(tmp_path / "custom"))

    poll(queue)

    assert wait_until(lambda: (tmp_path / "custom").exists() and queue.is_empty())
    custom = json.loads((tmp_path / "custom").read_text())
    assert custom == json.loads(CALLER_HIDES_MESSAGES)["custom"]


def test_message_whose_client_was_killed_goes_back(
    poll: Poll, queue: Queue, tmp_path: Path, states: list[str]
) -> None:
    release = tmp_path / "release"
    queue.send(marks=str(tmp_path), name="a", until=str(release))
    poll(queue, back_off_s=0.1)
    assert wait_until((tmp_path / "a.begin").exists)
    ric = int((tmp_path / "a.begin").read_text().split()[0])

    os.kill(ric, signal.SIGKILL)
    # Only the second try shall end.
    assert wait_until(lambda: not is_running(ric))
    release.touch()

    assert wait_until((tmp_path / "a.end").exists)
    assert wait_until(queue.is_empty)
    assert len((tmp_path / "a.begin").read_text().splitlines()) == 2
    assert "queue: 1 messages go back: Runtime.ExitError" in states


def test_message_that_fails_again_and_again_ends_in_the_dead_letter_queue(
    poll: Poll, sqs: Any, tmp_path: Path
) -> None:
    dead = Queue(sqs, "dead")
    redrive = json.dumps({"deadLetterTargetArn": dead.arn, "maxReceiveCount": 2})
    queue = Queue(sqs, "with-dead-letters", RedrivePolicy=redrive)
    queue.send(marks=str(tmp_path), name="bad", do="raise")

    poll(queue, back_off_s=0.1)

    assert wait_until(lambda: dead.visible() == 1)
    assert wait_until(queue.is_empty)
    tries = [float(line.split()[1]) for line in (tmp_path / "bad.begin").read_text().splitlines()]
    assert len(tries) == 2
    # A machine on which every job fails pauses before it receives the next message.
    assert tries[1] - tries[0] > 0.9


def test_stop_gives_back_what_has_not_begun_and_waits_for_what_has(
    poll: Poll, queue: Queue, tmp_path: Path
) -> None:
    running = poll(queue, holds_polls=True)
    # The poll is open when an invocation takes the only client: the message must wait.
    assert running.source.is_polled.wait(30)
    release = tmp_path / "release"
    action = {"marks": str(tmp_path), "name": "running", "until": str(release)}
    results: list[InvocationResult] = []
    caller = threading.Thread(
        target=lambda: results.append(
            running.host.invoke(json.dumps(action).encode(), timeout_s=60)
        )
    )
    caller.start()
    assert wait_until((tmp_path / "running.begin").exists)
    queue.send(marks=str(tmp_path), name="waiting")
    running.source.may_receive.set()
    assert wait_until(lambda: queue.hidden() == 1)

    stopping = threading.Thread(target=lambda: running.stop(drain_s=30))
    stopping.start()
    assert wait_until(lambda: queue.visible() == 1)
    release.touch()
    stopping.join()
    caller.join()

    assert results == [InvocationResult(b"null")]
    assert not (tmp_path / "waiting.begin").exists()
    assert [action["name"] for action in queue.take()] == ["waiting"]


def test_stop_gives_back_what_does_not_end_in_time(
    poll: Poll, queue: Queue, tmp_path: Path
) -> None:
    running = poll(queue)
    queue.send(marks=str(tmp_path), name="endless", seconds=60)
    assert wait_until((tmp_path / "endless.begin").exists)
    ric = int((tmp_path / "endless.begin").read_text().split()[0])

    running.stop(drain_s=0.2)

    assert not is_running(ric)
    assert [action["name"] for action in queue.take()] == ["endless"]


def test_error_names_sqs_own_code_for_a_queue_that_does_not_exist(sqs: Any) -> None:
    url = Queue(sqs, "any").url

    with pytest.raises(QueueError, match=r"QueueDoesNotExist|NonExistentQueue"):
        SqsQueue(url + "-not", connections=1)


def test_poller_goes_on_after_its_queue_was_deleted(
    poll: Poll, queue: Queue, sqs: Any, states: list[str]
) -> None:
    running = poll(queue)

    sqs.delete_queue(QueueUrl=queue.url)

    # It went on after the first failure, and pauses for two seconds after the second one.
    assert wait_until(lambda: sum(state.startswith("queue: receive") for state in states) >= 2)
    running.stop(drain_s=1)


MESSAGES = [Message({"MessageId": name}) for name in "ab"]


@pytest.mark.parametrize(
    ("reply", "failed"),
    [
        (None, ""),
        ({}, ""),
        ("", ""),
        ({"batchItemFailures": None}, ""),
        ({"batchItemFailures": [{"itemIdentifier": "b"}]}, "b"),
        ({"batchItemFailures": [{"itemIdentifier": "c"}]}, "ab"),
        ({"batchItemFailures": [{"itemIdentifier": ""}]}, "ab"),
        ({"batchItemFailures": [{"itemIdentifier": None}]}, "ab"),
        ({"batchItemFailures": [{"item": "a"}]}, "ab"),
        ({"batchItemFailures": 1}, "ab"),
    ],
)
def test_reply_is_read_as_lambda_reads_it(reply: Any, failed: str) -> None:
    messages = failed_messages(MESSAGES, InvocationResult(json.dumps(reply).encode()))

    assert "".join(message.message_id for message in messages) == failed


def test_after_a_function_error_every_message_goes_back() -> None:
    result = Failure(error_type="Any.Error").result_for("request-1")

    assert failed_messages(MESSAGES, result) == MESSAGES


def failed_event() -> FailedEvent:
    return FailedEvent(
        request_id="1",
        function_arn="arn",
        condition="RetriesExhausted",
        tries=3,
        event=b'{"a": 1}',
        result=Failure(error_type="Any.Error", message="why").result_for("request-1"),
    )


def test_failed_event_goes_to_a_queue(queue: Queue, states: list[str]) -> None:
    destination_of(queue.url, states.append)(failed_event())

    (record,) = queue.take()
    assert record["requestContext"]["condition"] == "RetriesExhausted"
    assert record["responsePayload"] == {"errorType": "Any.Error", "errorMessage": "why"}
    assert states == ["event 1 given up after 3 tries, RetriesExhausted, sent to the destination"]


def test_failed_event_is_sent_again_to_an_http_destination_that_is_unavailable(
    webhook_receiver: WebhookReceiver, states: list[str]
) -> None:
    webhook_receiver.answers.append(503)

    destination_of(webhook_receiver.url, states.append)(failed_event())

    assert len(webhook_receiver.calls) == 2
    assert webhook_receiver.bodies()[1]["requestPayload"] == {"a": 1}


def test_failed_event_that_cannot_be_delivered_is_reported_without_its_payload(
    states: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.lambda_host.destination._BACK_OFF_S", 0)
    destination_of("http://127.0.0.1:9/?token=canary", states.append)(failed_event())
    destination_of("", states.append)(failed_event())

    sentence = "event 1 given up after 3 tries, RetriesExhausted"
    assert states == [f"{sentence}; the destination refused: ConnectionError", sentence]
