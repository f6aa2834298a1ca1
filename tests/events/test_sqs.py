"""Messages of a real queue (moto's server): answered ones are deleted, retryable ones go back."""

import json
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from handler import app
from tests import workflows
from tests.conftest import Context, WebhookReceiver
from tests.workflows import event

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Queue:
    """One queue, and the part of Lambda's event source mapping that hands over and deletes."""

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
        """Give all messages to the handler as one batch; the bodies that went back."""
        messages = self._receive()
        reply = app.lambda_handler({"Records": [self._record(m) for m in messages]}, Context(100))
        back = {item["itemIdentifier"] for item in reply["batchItemFailures"]}
        for message in messages:
            if message["MessageId"] not in back:
                receipt = message["ReceiptHandle"]
                self._sqs.delete_message(QueueUrl=self.url, ReceiptHandle=receipt)
        return [message["Body"] for message in messages if message["MessageId"] in back]

    def left(self) -> list[str]:
        """The bodies that are still in the queue."""
        return [message["Body"] for message in self._receive()]

    def _receive(self) -> list[Any]:
        answer = self._sqs.receive_message(
            QueueUrl=self.url, MaxNumberOfMessages=10, AttributeNames=["All"]
        )
        found: list[Any] = answer.get("Messages", [])
        return found

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
def sqs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client(
        "sqs",
        endpoint_url=f"http://{host}:{port}",
        region_name="us-east-1",
        aws_access_key_id="x",
        aws_secret_access_key="x",
    )
    yield client
    client.close()
    server.stop()


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

    back = queue.deliver()

    assert [json.loads(body) for body in back] == [broken]
    assert queue.left() == back
    told = {body["id"]: body["status"] for body in webhook_receiver.bodies()}
    assert told == {
        "good": "completed",
        "invalid": "failed",
        "rejected": "failed",
        "broken": "failed",
        "last": "completed",
    }


def test_batch_in_which_everything_fails_is_still_a_partial_response(sqs: Any) -> None:
    queue = Queue(sqs, "broken")
    queue.send(event(workflows.one("TestOutOfMemory")))

    assert len(queue.deliver()) == 1


def test_nothing_overtakes_a_failed_message_of_a_fifo_queue(sqs: Any) -> None:
    queue = Queue(sqs, "jobs.fifo", FifoQueue="true", ContentBasedDeduplication="true")
    queue.send(event(workflows.image(), request_id="1"), MessageGroupId="a")
    queue.send(event(workflows.one("TestOutOfMemory"), request_id="2"), MessageGroupId="a")
    queue.send(event(workflows.image(), request_id="3"), MessageGroupId="a")

    back = [json.loads(body)["input"]["request_id"] for body in queue.deliver()]

    assert back == ["2", "3"]
