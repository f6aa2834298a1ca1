"""A source that delivers again: the webhook is called when the job has ended, and only then."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from events.asynchronous import TryAgain
from handler import app
from tests import workflows
from tests.conftest import Context, WebhookReceiver
from tests.events.samples import sample
from tests.events.test_sqs import Queue, sqs  # noqa: F401 - a fixture
from tests.processes import wait_until
from tests.workflows import event

pytestmark = [
    pytest.mark.usefixtures("comfyui"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture
def out_of_memory(webhook_receiver: WebhookReceiver) -> dict[str, Any]:
    return event(workflows.one("TestOutOfMemory"), webhook={"url": webhook_receiver.url})


def redelivered(queue: Queue) -> list[str]:
    """Deliver the message that the handler gave back, without waiting for its back-off."""
    assert wait_until(lambda: queue.waiting() == 1)
    return queue.deliver()


@pytest.fixture
def _no_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("events.sqs_visibility.BACK_OFF_S", 0)


@pytest.mark.usefixtures("_no_back_off")
def test_message_calls_the_webhook_after_its_last_delivery_alone(
    sqs: Any,  # noqa: F811 - the fixture
    out_of_memory: dict[str, Any],
    webhook_receiver: WebhookReceiver,
) -> None:
    dead = Queue(sqs, "redriven")
    policy = {"deadLetterTargetArn": dead.arn, "maxReceiveCount": 2}
    queue = Queue(sqs, "two-deliveries", RedrivePolicy=json.dumps(policy))
    queue.send(out_of_memory)

    assert len(queue.deliver()) == 1
    assert webhook_receiver.calls == []
    assert len(redelivered(queue)) == 1
    assert [body["status"] for body in webhook_receiver.bodies()] == ["failed"]
    assert webhook_receiver.bodies()[0]["error"]["type"] == "OutOfMemory"


@pytest.mark.usefixtures("_no_back_off")
def test_message_of_a_queue_without_a_last_delivery_never_calls_the_webhook_of_a_retryable_failure(
    sqs: Any,  # noqa: F811 - the fixture
    out_of_memory: dict[str, Any],
    webhook_receiver: WebhookReceiver,
) -> None:
    queue = Queue(sqs, "endless")
    queue.send(out_of_memory)

    assert len(queue.deliver()) == 1
    assert len(redelivered(queue)) == 1
    assert webhook_receiver.calls == []


def sns(request: Any) -> Any:
    notification = sample("sns_notification")
    notification["Records"][0]["Sns"]["Message"] = json.dumps(request)
    return notification


def eventbridge(request: Any) -> Any:
    return {**sample("eventbridge_request"), "detail": request}


@pytest.mark.parametrize("wrap", [sns, eventbridge])
def test_event_that_lambda_repeats_does_not_call_the_webhook_of_a_retryable_failure(
    wrap: Callable[[Any], Any], out_of_memory: dict[str, Any], webhook_receiver: WebhookReceiver
) -> None:
    with pytest.raises(TryAgain):
        app.lambda_handler(wrap(out_of_memory), Context(100))

    assert webhook_receiver.calls == []


@pytest.mark.parametrize("wrap", [sns, eventbridge])
def test_event_that_lambda_repeats_calls_the_webhook_of_a_permanent_failure(
    wrap: Callable[[Any], Any], webhook_receiver: WebhookReceiver
) -> None:
    app.lambda_handler(wrap(event({}, webhook={"url": webhook_receiver.url})), Context(100))

    assert [body["status"] for body in webhook_receiver.bodies()] == ["failed"]


def test_direct_invocation_calls_the_webhook_of_a_retryable_failure(
    out_of_memory: dict[str, Any], webhook_receiver: WebhookReceiver
) -> None:
    app.lambda_handler(out_of_memory, Context(100))

    assert [body["status"] for body in webhook_receiver.bodies()] == ["failed"]
