"""The API function of template.yaml: queue, table and bucket on moto's server, real ComfyUI.

The GPU function is the real handler, called with the messages of the queue.
"""

import json
from collections.abc import Iterator
from typing import Any

import boto3
import pytest

from events.contract import response_problems
from handler import app
from handler.api import function, jobs_queue
from tests import workflows
from tests.aws import REGION, bare_moto_server, use_moto_server
from tests.conftest import Context, WebhookReceiver
from tests.events.samples import sample
from tests.handler.job_tables import DynamoDBTable
from tests.workflows import event

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("comfyui"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
BUCKET = "results"


class Cloud:
    """The queue, and the two functions that share it."""

    def __init__(self, sqs: Any, queue_url: str) -> None:
        self.sqs, self.queue_url = sqs, queue_url

    def call(self, path: str, request: Any = None, method: str = "POST") -> tuple[int, Any]:
        """Status and body of the API function's answer to a call of its URL."""
        http = sample("http_function_url")
        http["rawPath"] = path
        http["requestContext"]["http"] |= {"method": method, "path": path}
        body = None if request is None else json.dumps(request)
        reply = function.lambda_handler(
            {**http, "body": body, "isBase64Encoded": False}, Context(4)
        )
        return reply["statusCode"], json.loads(reply["body"])

    def get(self, path: str) -> tuple[int, Any]:
        return self.call(path, method="GET")

    def run_messages(self) -> int:
        """Give every message of the queue to the GPU function, as Lambda does; how many."""
        answer = self.sqs.receive_message(QueueUrl=self.queue_url, MaxNumberOfMessages=10)
        messages = answer.get("Messages", [])
        for message in messages:
            record = {
                "messageId": message["MessageId"],
                "receiptHandle": message["ReceiptHandle"],
                "eventSource": "aws:sqs",
                "eventSourceARN": f"arn:aws:sqs:{REGION}:123456789012:jobs",
                "body": message["Body"],
            }
            assert app.lambda_handler({"Records": [record]}, Context(60)) == {
                "batchItemFailures": []
            }
            self.sqs.delete_message(QueueUrl=self.queue_url, ReceiptHandle=message["ReceiptHandle"])
        return len(messages)


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    with bare_moto_server() as url:
        use_moto_server(monkeypatch, url, "AWS_ENDPOINT_URL")
        options = {
            "endpoint_url": url,
            "region_name": REGION,
            "aws_access_key_id": "testing",
            "aws_secret_access_key": "testing",
        }
        clients = {name: boto3.client(name, **options) for name in ("sqs", "dynamodb", "s3")}
        DynamoDBTable(clients["dynamodb"]).create()
        clients["s3"].create_bucket(Bucket=BUCKET)
        queue_url = clients["sqs"].create_queue(QueueName="jobs")["QueueUrl"]
        for name, value in {
            "JOBS_TABLE": DynamoDBTable.NAME,
            "JOBS_QUEUE_URL": queue_url,
            "S3_BUCKET_NAME": BUCKET,
            "S3_REGION": REGION,
        }.items():
            monkeypatch.setenv(name, value)
        function._front.cache_clear()
        yield Cloud(clients["sqs"], queue_url)
        function._front.cache_clear()
        for client in clients.values():
            client.close()


def test_accepted_job_is_run_by_the_gpu_function_and_answered_by_the_api(cloud: Cloud) -> None:
    status, accepted = cloud.call("/generate", event(workflows.image(), request_id="a"))
    assert (status, accepted["status"]) == (202, "queued")
    assert response_problems(accepted) == []

    assert cloud.run_messages() == 1

    status, response = cloud.get("/result/a")
    assert (status, response["status"]) == (200, "completed")
    assert response["output"][0]["url"]
    _, page = cloud.get("/jobs")
    assert [(job["id"], job["status"]) for job in page["jobs"]] == [("a", "completed")]


def test_call_that_waits_is_answered_before_its_time_is_over(cloud: Cloud) -> None:
    status, envelope = cloud.call("/generate/sync", event(workflows.image(), request_id="w"))

    assert (status, envelope["status"]) == (202, "queued")
    assert cloud.run_messages() == 1
    assert cloud.call("/generate/sync", event({"1": {}}, request_id="w"))[0] == 400


def test_job_that_is_cancelled_in_the_queue_does_not_run(
    cloud: Cloud, webhook_receiver: WebhookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = cloud.sqs.create_queue(QueueName="dead")["QueueUrl"]
    monkeypatch.setenv("DEAD_LETTER_QUEUE_URL", dead)
    request = event(
        workflows.one("TestRaise", message="ran"),
        request_id="c",
        webhook={"url": webhook_receiver.url},
    )
    for _ in range(2):
        cloud.call("/generate", request)

    for _ in range(2):
        status, response = cloud.call("/cancel/c")
        assert (status, response["status"]) == (200, "cancelled")
    assert cloud.run_messages() == 2

    assert cloud.get("/result/c")[1]["error"]["type"] == "Cancelled"
    assert [body["status"] for body in webhook_receiver.bodies()] == ["cancelled"]
    assert "Messages" not in cloud.sqs.receive_message(QueueUrl=dead)


def test_request_that_is_larger_than_a_message_goes_through_the_bucket(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_queue, "MAX_MESSAGE_BYTES", 100)

    assert cloud.call("/generate", event(workflows.image(), request_id="large"))[0] == 202
    assert cloud.run_messages() == 1

    assert cloud.get("/result/large")[1]["status"] == "completed"


def test_same_request_again_is_one_job_and_another_one_is_refused(cloud: Cloud) -> None:
    request = event(workflows.image(), request_id="twice")
    assert cloud.call("/generate", request)[0] == 202
    assert cloud.call("/generate", request)[0] == 202
    assert cloud.call("/generate", event(workflows.image(), request_id="twice"))[0] == 409

    assert cloud.run_messages() == 2
    assert cloud.call("/generate", request)[0] == 200


def test_repeat_of_a_job_that_has_its_answer_starts_no_gpu(cloud: Cloud) -> None:
    request = event(workflows.image(), request_id="known")
    cloud.call("/generate", request)
    assert cloud.run_messages() == 1

    for path in ("/generate", "/generate/sync"):
        status, response = cloud.call(path, request)
        assert (status, response["status"]) == (200, "completed")
    assert cloud.run_messages() == 0


@pytest.mark.parametrize("path", ["/generate", "/generate/sync"])
def test_webhook_that_failed_is_shown_and_called_again_for_the_same_request(
    path: str, cloud: Cloud, webhook_receiver: WebhookReceiver
) -> None:
    webhook_receiver.answers = [400]
    workflow = workflows.text("number __RANDOM_INT__")
    request = event(workflow, request_id="missed", webhook={"url": webhook_receiver.url})
    cloud.call("/generate", request)
    assert cloud.run_messages() == 1
    shown = cloud.get("/result/missed")[1]
    assert response_problems(shown) == []

    status, again = cloud.call(path, request)
    assert (status, again) == (200, shown)
    assert cloud.run_messages() == 1

    (headers, body), (repeated, same_body) = webhook_receiver.calls
    assert shown.pop("webhook") == {"state": "failed", "event_id": headers["webhook-id"]}
    assert (headers["webhook-id"], body) == (repeated["webhook-id"], same_body)
    # Another run would have another number.
    assert cloud.get("/result/missed")[1] == shown


def test_queue_that_does_not_answer_is_a_503_and_the_job_can_be_sent_again(cloud: Cloud) -> None:
    request = event(workflows.image(), request_id="later")
    cloud.sqs.delete_queue(QueueUrl=cloud.queue_url)

    status, body = cloud.call("/generate", request)
    assert status == 503
    assert "the queue of jobs did not take the job" in body["message"]
    _, record = cloud.get("/result/later")
    assert (record["status"], record["error"]["retryable"]) == ("failed", True)

    cloud.sqs.create_queue(QueueName="jobs")
    assert cloud.call("/generate", request)[0] == 202
    assert cloud.run_messages() == 1


def test_what_only_a_host_has_is_not_offered(cloud: Cloud) -> None:
    assert cloud.get("/worker")[0] == 501
    cloud.call("/generate", event(workflows.image(), request_id="s"))
    assert cloud.get("/generate/stream/s")[0] == 501
    assert cloud.get("/health")[0] == 200
    with pytest.raises(ValueError, match="HTTP calls alone"):
        function.lambda_handler(event(workflows.image()), Context(4))
