"""A workflow as ComfyUI exports it is a request in every source; S3 has its test in test_s3.py."""

import json
from typing import Any

import pytest

from handler import app
from tests import workflows
from tests.conftest import Context, WebhookReceiver
from tests.events.samples import sample

pytestmark = pytest.mark.usefixtures("comfyui")

INVALID: dict[str, Any] = {"nodes": [], "links": []}


def handle(event: Any) -> Any:
    return app.lambda_handler(event, Context(100))


def test_direct_invocation() -> None:
    assert handle(workflows.image())["status"] == "completed"


def test_http_body() -> None:
    event = {**sample("http_function_url"), "isBase64Encoded": False}

    assert handle({**event, "body": json.dumps(workflows.image())})["statusCode"] == 200
    assert handle({**event, "body": json.dumps(INVALID)})["statusCode"] == 400


def test_sqs_message_gives_the_job_its_id(
    webhook_receiver: WebhookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEBHOOK_URL", webhook_receiver.url)
    event = sample("sqs_message")
    event["Records"][0]["body"] = json.dumps(workflows.image())

    assert handle(event) == {"batchItemFailures": []}

    (body,) = webhook_receiver.bodies()
    assert (body["id"], body["status"]) == (event["Records"][0]["messageId"], "completed")


def test_sns_message_gives_the_job_its_id() -> None:
    event = sample("sns_notification")
    event["Records"][0]["Sns"]["Message"] = json.dumps(workflows.image())

    (response,) = handle(event)["responses"]

    assert response["id"] == event["Records"][0]["Sns"]["MessageId"]
    assert response["status"] == "completed"


def test_eventbridge_detail_gives_the_job_its_id() -> None:
    event = {**sample("eventbridge_request"), "detail": workflows.image()}

    (response,) = handle(event)["responses"]

    assert (response["id"], response["status"]) == (event["id"], "completed")
