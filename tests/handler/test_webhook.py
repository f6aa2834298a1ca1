"""The webhook, received by a real server; its signature is verified by OpenSSL."""

import base64
import socket
import subprocess
import threading
import time
from contextlib import suppress
from typing import Any

import pytest

from events.contract import webhook_problems
from handler import webhook, webhook_progress
from tests import workflows
from tests.conftest import WebhookReceiver, run
from tests.workflows import node, one

pytestmark = pytest.mark.usefixtures("comfyui")

SECRET = "canary-secret-0815"


def signature_by_openssl(body: bytes, secret: str) -> str:
    line = ["openssl", "dgst", "-sha256", "-hmac", secret]
    answer = subprocess.run(line, input=body, capture_output=True, check=True)
    return "sha256=" + answer.stdout.decode().rpartition("= ")[2].strip()


def test_webhook_has_the_callers_extra_params(
    webhook_receiver: WebhookReceiver,
) -> None:
    extra = {"user_id": "12345", "status": "not the job's"}

    response = run(workflows.image(), webhook={"url": webhook_receiver.url, "extra_params": extra})

    (body,) = webhook_receiver.bodies()
    assert webhook_problems(body) == []
    assert body["extra"] == extra
    assert body["status"] == "completed"
    assert body["id"] == response["id"]
    assert body["output"] == response["output"]


def test_receiver_that_never_ends_its_answer_does_not_delay_the_handler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(webhook, "_BUDGET_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def trickle() -> None:
            with server.accept()[0] as connection, suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                while True:
                    connection.sendall(b"x")
                    time.sleep(0.1)

        receiver = threading.Thread(target=trickle, daemon=True)
        receiver.start()

        response = run(
            workflows.image(), webhook={"url": f"http://127.0.0.1:{server.getsockname()[1]}"}
        )

        assert receiver.is_alive(), "the answer has ended"
    assert response["status"] == "completed"


def test_signature_is_that_of_the_exact_bytes(webhook_receiver: WebhookReceiver) -> None:
    run(workflows.image(), webhook={"url": webhook_receiver.url, "secret": SECRET})

    ((headers, body),) = webhook_receiver.calls
    assert headers["X-Webhook-Signature"] == signature_by_openssl(body, SECRET)
    assert headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("workflow", [workflows.one("TestRaise", message="x"), {}, "text"])
def test_webhook_reports_a_failure(workflow: Any, webhook_receiver: WebhookReceiver) -> None:
    response = run(workflow, request_id="job-9", webhook={"url": webhook_receiver.url})

    (body,) = webhook_receiver.bodies()
    assert webhook_problems(body) == []
    assert body["id"] == "job-9"
    assert body["status"] == "failed"
    assert body["message"] == response["message"]


def test_failure_has_the_error_of_the_response(webhook_receiver: WebhookReceiver) -> None:
    response = run({}, webhook={"url": webhook_receiver.url})

    (body,) = webhook_receiver.bodies()
    assert body["error"] == response["error"]
    assert body["error"]["type"] == "InvalidRequest"


def test_body_has_no_base64(webhook_receiver: WebhookReceiver) -> None:
    response = run(
        workflows.image(), webhook={"url": webhook_receiver.url}, return_outputs_as_base64=True
    )

    (body,) = webhook_receiver.bodies()
    (item,) = response["output"]
    assert item.pop("base64")
    assert body["output"] == [item]
    assert webhook_problems(body) == []
    assert "error" not in body
    assert webhook_problems({**body, "output": [{**item, "base64": "eA=="}]}) != []


def standard_signature_by_openssl(headers: dict[str, str], body: bytes, key: bytes) -> str:
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    line = ["openssl", "dgst", "-sha256", "-mac", "HMAC", "-macopt", f"hexkey:{key.hex()}"]
    answer = subprocess.run([*line, "-binary"], input=signed, capture_output=True, check=True)
    return "v1," + base64.b64encode(answer.stdout).decode()


def test_standard_signature_covers_id_time_and_body(webhook_receiver: WebhookReceiver) -> None:
    began = int(time.time())

    run({}, webhook={"url": webhook_receiver.url, "secret": SECRET})

    ((headers, body),) = webhook_receiver.calls
    expected = standard_signature_by_openssl(headers, body, SECRET.encode())
    assert headers["webhook-signature"] == expected
    assert began <= int(headers["webhook-timestamp"]) <= time.time()


def test_secret_in_the_form_of_standard_webhooks_is_decoded(
    webhook_receiver: WebhookReceiver,
) -> None:
    key = bytes(range(24))
    secret = "whsec_" + base64.b64encode(key).decode()

    run({}, webhook={"url": webhook_receiver.url, "secret": secret})

    ((headers, body),) = webhook_receiver.calls
    assert headers["webhook-signature"] == standard_signature_by_openssl(headers, body, key)
    assert headers["X-Webhook-Signature"] == signature_by_openssl(body, secret)


def test_second_secret_signs_the_operators_webhook_as_well(
    webhook_receiver: WebhookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEBHOOK_URL", webhook_receiver.url)
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    monkeypatch.setenv("WEBHOOK_SECOND_SECRET", "canary-2")

    run({})
    run({}, webhook={"secret": "the-callers"})

    (headers, body), (callers, callers_body) = webhook_receiver.calls
    assert headers["webhook-signature"].split() == [
        standard_signature_by_openssl(headers, body, key.encode()) for key in (SECRET, "canary-2")
    ]
    assert headers["X-Webhook-Signature"] == signature_by_openssl(body, SECRET)
    assert callers["webhook-signature"] == standard_signature_by_openssl(
        callers, callers_body, b"the-callers"
    )


def test_url_and_secret_come_from_the_environment_when_not_given(
    webhook_receiver: WebhookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEBHOOK_URL", webhook_receiver.url)
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)

    run(workflows.image(), webhook={"url": "", "extra_params": {"a": 1}})

    ((headers, body),) = webhook_receiver.calls
    assert headers["X-Webhook-Signature"] == signature_by_openssl(body, SECRET)
    assert webhook_receiver.bodies()[0]["extra"] == {"a": 1}


def test_call_is_repeated_until_the_server_accepts_it(webhook_receiver: WebhookReceiver) -> None:
    webhook_receiver.answers = [503, 429]

    run(workflows.image(), webhook={"url": webhook_receiver.url})

    assert len(webhook_receiver.calls) == 3
    assert len({body for _, body in webhook_receiver.calls}) == 1


def test_repeated_calls_have_one_id_and_those_of_two_jobs_have_two(
    webhook_receiver: WebhookReceiver,
) -> None:
    webhook_receiver.answers = [503]

    run({}, webhook={"url": webhook_receiver.url})
    run({}, webhook={"url": webhook_receiver.url})

    first, repeated, other = (headers["webhook-id"] for headers, _ in webhook_receiver.calls)
    assert first == repeated != other


def test_refusal_is_final(webhook_receiver: WebhookReceiver) -> None:
    webhook_receiver.answers = [400]

    response = run(workflows.image(), webhook={"url": webhook_receiver.url})

    assert len(webhook_receiver.calls) == 1
    assert response["status"] == "completed"


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x", "http://[::bad/x", "http://nowhere.test"])
def test_webhook_that_cannot_be_called_changes_nothing(url: str) -> None:
    response = run(
        workflows.image(), seconds=3.0, webhook={"url": url + "?token=" + SECRET, "timeout": 1}
    )

    assert response["status"] == "completed"
    assert "error" not in response


@pytest.mark.usefixtures("comfyui")
def test_calls_while_the_job_goes_on_are_made_where_the_request_asks_for_them(
    webhook_receiver: WebhookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_progress, "PROGRESS_EVERY_S", 0.1)
    workflow = {
        "1": node("TestSleep", seconds=0.6, deaf=False),
        "2": node("TestSleep", seconds=0.6, deaf=True),
    }
    hook = {"url": webhook_receiver.url, "secret": "s", "extra_params": {"a": 1}}

    run(workflow, webhook={**hook, "events": ["progress", "queued", "processing"]})
    statuses = [body["status"] for body in webhook_receiver.bodies()]

    assert statuses == ["queued", "processing", "generating", "completed"]
    assert [webhook_problems(body) for body in webhook_receiver.bodies()] == [[]] * 4
    assert {body["extra"]["a"] for body in webhook_receiver.bodies()} == {1}
    ids = {headers["webhook-id"] for headers, _ in webhook_receiver.calls}
    assert len(ids) == 4
    assert all("webhook-signature" in headers for headers, _ in webhook_receiver.calls)


@pytest.mark.parametrize(
    ("events", "called"),
    [
        ([], ["failed"]),
        (["failed", "cancelled"], ["failed"]),
        (["completed", "cancelled"], []),
        (["queued", "processing", "progress"], ["failed"]),
    ],
)
def test_request_chooses_the_ends_that_its_webhook_is_called_about(
    events: list[str], called: list[str], webhook_receiver: WebhookReceiver
) -> None:
    response = run({"1": {}}, webhook={"url": webhook_receiver.url, "events": events})

    assert response["status"] == "failed"
    assert [body["status"] for body in webhook_receiver.bodies()] == called


def test_webhook_of_a_job_that_completed_is_not_called_where_failures_alone_are_chosen(
    webhook_receiver: WebhookReceiver,
) -> None:
    hook = {"url": webhook_receiver.url, "events": ["failed", "queued"]}

    assert run(workflows.image(), webhook=hook)["status"] == "completed"

    assert [body["status"] for body in webhook_receiver.bodies()] == ["queued"]


def test_unknown_name_in_the_events_is_refused(webhook_receiver: WebhookReceiver) -> None:
    response = run(workflows.image(), webhook={"url": webhook_receiver.url, "events": ["done"]})

    assert "input.webhook.events" in response["message"]
    assert [body["status"] for body in webhook_receiver.bodies()] == ["failed"]


@pytest.mark.usefixtures("comfyui")
def test_slow_receiver_of_progress_delays_no_job(webhook_receiver: WebhookReceiver) -> None:
    webhook_receiver.delay_s = 5.0
    hook = {"url": webhook_receiver.url, "events": ["queued"], "timeout": 0.5}

    response = run(one("TestSleep", seconds=0.1, deaf=False), webhook=hook)

    assert response["timings"]["generation_ms"] < 2000
