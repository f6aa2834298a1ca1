"""Messages of a real queue (moto's server): retryable ones go back, the others leave the queue."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest

from events import sqs as sqs_source
from events import sqs_visibility
from events.asynchronous import TryAgain
from events.errors import AlreadyRunning, JobError, OutOfMemory, WorkerUnavailable
from events.event_context import EventContext
from handler import app
from handler.job_events import JobQueued, JobRepeated
from handler.jobs.held_claim import LEASE_S
from tests import workflows
from tests.conftest import Context, WebhookReceiver
from tests.events.samples import sample
from tests.processes import wait_until
from tests.workflows import event

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Queue:
    """One queue, and the part of Lambda's event source mapping that invokes and deletes."""

    def __init__(self, sqs: Any, name: str, **attributes: str) -> None:
        self._sqs = sqs
        self.url = sqs.create_queue(
            QueueName=name, Attributes={"VisibilityTimeout": "0", **attributes}
        )["QueueUrl"]
        answer = sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=["QueueArn"])
        self.arn = answer["Attributes"]["QueueArn"]

    def send(self, body: Any, **options: str) -> None:
        text = body if isinstance(body, str) else json.dumps(body)
        self._sqs.send_message(QueueUrl=self.url, MessageBody=text, **options)

    def deliver(self) -> list[str]:
        """Give all messages to the handler as one batch. Returns the bodies that went back."""
        messages = self.take()
        reply = app.lambda_handler(self.event_of(messages), Context(100))
        failed_ids = {item["itemIdentifier"] for item in reply["batchItemFailures"]}
        for message in messages:
            if message["MessageId"] not in failed_ids:
                receipt = message["ReceiptHandle"]
                self._sqs.delete_message(QueueUrl=self.url, ReceiptHandle=receipt)
        return [message["Body"] for message in messages if message["MessageId"] in failed_ids]

    def take(self) -> list[Any]:
        """Whole messages, attributes and all."""
        answer = self._sqs.receive_message(
            QueueUrl=self.url,
            MaxNumberOfMessages=10,
            AttributeNames=["All"],
            MessageAttributeNames=["All"],
        )
        messages: list[Any] = answer.get("Messages", [])
        return messages

    def event_of(self, messages: list[Any]) -> dict[str, Any]:
        return {"Records": [self._record(message) for message in messages]}

    def waiting(self) -> int:
        """How many messages can be received now."""
        name = "ApproximateNumberOfMessages"
        answer = self._sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=[name])
        return int(answer["Attributes"][name])

    def hidden(self) -> int:
        """How many messages are in the queue but cannot be received now."""
        name = "ApproximateNumberOfMessagesNotVisible"
        answer = self._sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=[name])
        return int(answer["Attributes"][name])

    def bodies(self) -> list[str]:
        """The bodies of the messages that can be received now."""
        return [message["Body"] for message in self.take()]

    def _record(self, message: Any) -> dict[str, Any]:
        # https://docs.aws.amazon.com/lambda/latest/dg/with-sqs.html
        return {
            "messageId": message["MessageId"],
            "receiptHandle": message["ReceiptHandle"],
            "body": message["Body"],
            "attributes": message["Attributes"],
            "messageAttributes": {},
            "md5OfBody": message["MD5OfBody"],
            "eventSource": "aws:sqs",
            "eventSourceARN": self.arn,
            "awsRegion": "us-east-1",
        }


@pytest.fixture
def sqs(aws: str) -> Iterator[Any]:
    client = boto3.session.Session().client("sqs")
    yield client
    client.close()


@pytest.mark.usefixtures("comfyui")
def test_only_the_failed_retryable_message_goes_back(
    sqs: Any, webhook_receiver: WebhookReceiver
) -> None:
    queue = Queue(sqs, "jobs")
    hook = {"url": webhook_receiver.url}
    broken = event(workflows.one("TestKill"), request_id="broken", webhook=hook)
    queue.send(event(workflows.image(), request_id="good", webhook=hook))
    queue.send("{not json")
    queue.send(event({}, request_id="invalid", webhook=hook))
    queue.send(event(workflows.one("NoSuchNode"), request_id="rejected", webhook=hook))
    queue.send(broken)
    queue.send(event(workflows.image(), request_id="last", webhook=hook))

    failed = queue.deliver()

    assert [json.loads(body) for body in failed] == [broken]
    assert (queue.waiting(), queue.hidden()) == (0, 1)
    statuses = {body["id"]: body["status"] for body in webhook_receiver.bodies()}
    assert statuses == {
        "good": "completed",
        "invalid": "failed",
        "rejected": "failed",
        "last": "completed",
    }


@pytest.mark.parametrize(
    ("receive_count", "errors", "seconds"),
    [
        (1, [WorkerUnavailable], 10),
        (3, [WorkerUnavailable, OutOfMemory], 40),
        (3, [AlreadyRunning], 1500),
        (3, [OutOfMemory, AlreadyRunning], 1500),
        (1000, [], 900),
    ],
)
def test_message_that_goes_back_waits_longer_each_time(
    receive_count: int, errors: list[type[JobError]], seconds: int
) -> None:
    error = TryAgain("", errors, retry_after_s=12)
    delays = {sqs_visibility.back_off_after_error_s(receive_count, error) for _ in range(1000)}

    assert delays <= set(range(seconds // 2, seconds + 1))
    assert len(delays) > seconds // 4


@pytest.mark.parametrize("receive_count", [1, 2])
def test_message_whose_job_another_delivery_runs_comes_again_when_its_claim_can_have_ended(
    receive_count: int,
) -> None:
    error = TryAgain("", [OutOfMemory, AlreadyRunning], retry_after_s=12)

    delays = {sqs_visibility.back_off_after_error_s(receive_count, error) for _ in range(1000)}

    assert delays == {13, 14, 15}


def test_claim_of_a_killed_handler_ends_before_its_message_comes_again() -> None:
    assert sqs_visibility.HIDDEN_S > LEASE_S
    assert sqs_visibility.back_off_after_crash_s(1) > LEASE_S


@pytest.mark.usefixtures("comfyui")
def test_message_that_goes_back_comes_again_before_the_queue_s_own_time(
    sqs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqs_visibility, "BACK_OFF_S", 1)
    queue = Queue(sqs, "slow", VisibilityTimeout="5400")
    queue.send(event(workflows.one("TestOutOfMemory")))

    assert len(queue.deliver()) == 1
    assert queue.waiting() == 0
    assert wait_until(lambda: queue.waiting() == 1)


@pytest.mark.slow
def test_message_of_a_killed_handler_comes_again_soon(
    sqs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_for_two_seconds(monkeypatch)
    queue = Queue(sqs, "killed", VisibilityTimeout="5400")
    queue.send("{}")

    def dies(_: Any, **__: Any) -> dict[str, Any]:
        time.sleep(0.5)
        raise SystemExit

    with pytest.raises(SystemExit):
        sqs_source.process(queue.event_of(queue.take()), EventContext(handle=dies))

    assert wait_until(lambda: queue.waiting() == 1)


@pytest.mark.slow
def test_messages_are_hidden_while_their_batch_runs_but_not_beyond_its_time(
    sqs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_for_two_seconds(monkeypatch)
    # A busy machine may need three seconds for a renewal.
    monkeypatch.setattr(sqs_visibility, "HIDDEN_S", 4)
    monkeypatch.setattr(sqs_visibility, "RENEWALS_IN_HIDDEN_S", 12)
    queue = Queue(sqs, "long", VisibilityTimeout="5400")
    for number in range(12):
        queue.send(str(number))
    batch = queue.event_of([*queue.take(), *queue.take()])
    seen: list[int] = []
    time_left_s = 60.0

    def takes_long(_: Any, **__: Any) -> dict[str, Any]:
        nonlocal time_left_s
        if not seen:
            # Longer than one call hides them for.
            for _ in range(9):
                time.sleep(0.5)
                seen.append(queue.waiting())
            time_left_s = 0.0
            assert wait_until(lambda: queue.waiting() == 12)
        return {}

    context = EventContext(handle=takes_long, time_left_s=lambda: time_left_s)
    sqs_source.process(batch, context)

    assert len(batch["Records"]) == 12
    assert seen == [0] * 9


@pytest.mark.slow
def test_messages_are_not_hidden_by_the_handler_if_its_caller_hides_them(
    sqs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_for_two_seconds(monkeypatch)
    queue = Queue(sqs, "hidden-by-the-caller", VisibilityTimeout="1")
    queue.send("{}")
    seen: list[bool] = []

    def waits(_: Any, **__: Any) -> dict[str, Any]:
        seen.append(wait_until(lambda: queue.waiting() == 1))
        return {}

    context = EventContext(handle=waits, caller_hides_messages=True)
    sqs_source.process(queue.event_of(queue.take()), context)

    assert seen == [True]


@pytest.mark.parametrize(
    ("custom", "hides"),
    [
        (json.loads(sqs_visibility.CALLER_HIDES_MESSAGES)["custom"], True),
        ({}, False),
        (None, False),
        ({"hides-sqs-messages": "yes"}, False),
    ],
)
def test_caller_says_in_the_client_context_that_it_hides_messages(custom: Any, hides: bool) -> None:
    lambda_context = SimpleNamespace(client_context=SimpleNamespace(custom=custom))

    assert sqs_visibility.caller_hides_messages(lambda_context) is hides


@pytest.mark.parametrize("lambda_context", [None, SimpleNamespace(client_context=None)])
def test_invocation_without_a_client_context_hides_its_messages(lambda_context: Any) -> None:
    assert sqs_visibility.caller_hides_messages(lambda_context) is False


def hide_for_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqs_visibility, "HIDDEN_S", 2)
    monkeypatch.setattr(sqs_visibility, "FIRST_RENEWAL_AFTER_S", 0.0)


@pytest.mark.usefixtures("comfyui")
def test_request_without_an_id_gets_the_id_of_its_message(
    sqs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("JOBS_DB", str(tmp_path / "jobs.sqlite"))
    queue = Queue(sqs, "twice")
    queue.send(event(workflows.image()))
    batch = queue.event_of(queue.take())

    for _ in "12":
        app.lambda_handler(batch, Context(100))

    steps = [each for record in caplog.records if (each := getattr(record, "event", ""))]
    assert (steps.count(JobQueued.name), steps.count(JobRepeated.name)) == (1, 1)


@pytest.mark.usefixtures("comfyui")
def test_batch_in_which_everything_fails_is_still_a_partial_response(sqs: Any) -> None:
    queue = Queue(sqs, "broken")
    queue.send(event(workflows.one("TestOutOfMemory")))

    assert len(queue.deliver()) == 1


@pytest.mark.usefixtures("comfyui")
def test_nothing_overtakes_a_failed_message_of_a_fifo_queue(sqs: Any) -> None:
    queue = Queue(sqs, "jobs.fifo", FifoQueue="true", ContentBasedDeduplication="true")
    queue.send(event(workflows.image(), request_id="1"), MessageGroupId="a")
    queue.send(event(workflows.one("TestOutOfMemory"), request_id="2"), MessageGroupId="a")
    queue.send(event(workflows.image(), request_id="3"), MessageGroupId="a")

    failed_ids = [json.loads(body)["input"]["request_id"] for body in queue.deliver()]

    assert failed_ids == ["2", "3"]


@pytest.mark.usefixtures("comfyui")
@pytest.mark.parametrize("name", ["sqs_message", "sqs_sns_envelope"])
def test_request_is_found_with_and_without_the_envelope_of_sns(
    name: str, webhook_receiver: WebhookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEBHOOK_URL", webhook_receiver.url)

    assert app.lambda_handler(sample(name), Context(100)) == {"batchItemFailures": []}

    (body,) = webhook_receiver.bodies()
    assert body["id"] == {"sqs_message": "sqs-1", "sqs_sns_envelope": "sqs-sns-1"}[name]
    assert body["status"] == "completed"


@pytest.mark.usefixtures("comfyui")
def test_only_what_failed_for_good_goes_to_the_dead_letter_queue(
    sqs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, dead = Queue(sqs, "with-dead"), Queue(sqs, "dead")
    monkeypatch.setenv("DEAD_LETTER_QUEUE_URL", dead.url)
    invalid = json.dumps(event({"1": {"x" * 50 + str(n): {} for n in range(9)}}))
    queue.send(event(workflows.image()))
    queue.send(event(workflows.one("TestOutOfMemory"), request_id="again"))
    queue.send(invalid)
    queue.send(event(workflows.one("TestRaise", message="\0 \ufffe " + "long " * 500)))

    assert [json.loads(body)["input"]["request_id"] for body in queue.deliver()] == ["again"]

    refused, raised = dead.take()
    assert refused["Body"] == invalid
    texts = {name: value["StringValue"] for name, value in refused["MessageAttributes"].items()}
    assert texts["ErrorType"] == "InvalidRequest"
    assert "input.workflow_json.1" in texts["ErrorMessage"]
    assert len(texts["OriginalMessageId"]) == 36
    assert len(raised["MessageAttributes"]["ErrorMessage"]["StringValue"]) == 1024
    assert raised["MessageAttributes"]["ErrorType"]["StringValue"] == "ExecutionFailed"


def test_message_is_a_dead_letter_once_even_if_its_batch_crashes_before_the_reply(
    sqs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, dead = Queue(sqs, "crashes"), Queue(sqs, "crashes-dead")
    monkeypatch.setenv("DEAD_LETTER_QUEUE_URL", dead.url)
    queue.send("{not json")

    # The reply is not used, as if the batch had crashed.
    app.lambda_handler(queue.event_of(queue.take()), Context(100))

    assert queue.waiting() == 0
    assert dead.waiting() == 1


def test_dead_letters_of_a_fifo_queue_keep_their_group(
    sqs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo = {"FifoQueue": "true", "ContentBasedDeduplication": "true"}
    queue, dead = Queue(sqs, "with-dead.fifo", **fifo), Queue(sqs, "dead.fifo", **fifo)
    monkeypatch.setenv("DEAD_LETTER_QUEUE_URL", dead.url)
    queue.send(event({}), MessageGroupId="a")

    assert queue.deliver() == []

    (message,) = dead.take()
    assert message["Attributes"]["MessageGroupId"] == "a"


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/1/none", "nonsense"])
def test_message_goes_back_if_the_dead_letter_queue_refuses_it(
    sqs: Any, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    queue = Queue(sqs, f"no-dead-{len(url)}")
    monkeypatch.setenv("DEAD_LETTER_QUEUE_URL", url)
    queue.send("{not json")

    assert queue.deliver() == ["{not json"]
