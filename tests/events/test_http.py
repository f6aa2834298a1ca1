"""Calls of the API through each front door of a function: the call and the reply.

The routes themselves are tested in tests/handler/api/.
"""

import base64
import json
import os
import signal
import threading
from typing import Any

import pytest

from events import http
from events.contract import response_problems
from events.errors import AlreadyRunning
from events.event_context import EventContext
from handler import app
from handler.api.function_api import FunctionApi
from handler.settings import Settings
from tests import workflows
from tests.conftest import Context
from tests.events.samples import NAMES, sample
from tests.workflows import event

DOORS = [name for name in NAMES if name.startswith("http_")]
every_door = pytest.mark.parametrize("door", DOORS)


def call(http_event: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
    """Status, headers in small letters, and the body of the reply."""
    reply = app.lambda_handler(http_event, Context(100))
    multi_value = {name: values[0] for name, values in reply.get("multiValueHeaders", {}).items()}
    headers = {k.lower(): v for k, v in {**multi_value, **reply.get("headers", {})}.items()}
    assert headers["content-type"] == "application/json"
    assert reply["isBase64Encoded"] is False
    return reply["statusCode"], headers, json.loads(reply["body"])


def answer(door: str, response: dict[str, Any]) -> dict[str, Any]:
    """The reply to the sample, whose job has this response."""
    api = FunctionApi(Settings())
    context = EventContext(handle=lambda _, **__: response, answer_http=api.answer)
    return http.process(sample(door), context)


def with_body(door: str, body: str | None, *, is_base64: bool = False) -> dict[str, Any]:
    return {**sample(door), "body": body, "isBase64Encoded": is_base64}


def with_path(door: str, path: str, method: str = "POST") -> dict[str, Any]:
    http_event: dict[str, Any] = sample(door)
    if "rawPath" in http_event:
        http_event["rawPath"] = path
        http_event["requestContext"]["http"] |= {"method": method, "path": path}
    else:
        http_event |= {"path": path, "httpMethod": method}
    return http_event


@pytest.mark.usefixtures("comfyui")
@every_door
def test_sample_is_run_and_answered(door: str) -> None:
    status, _, response = call(sample(door))

    assert status == 200
    assert response_problems(response) == []
    assert response["status"] == "completed"
    assert response["id"].startswith("http-")


@every_door
@pytest.mark.parametrize(
    ("body", "is_base64"),
    [
        (None, False),
        ("", False),
        ("{not json", False),
        ("[" * 100_000, False),
        ("{}", False),
        ("not base64!", True),
        ("é", True),
        (base64.b64encode(b"\xff\xfe").decode(), True),
    ],
)
def test_body_that_is_no_request_is_a_400_in_the_envelope(
    door: str, body: str | None, is_base64: bool
) -> None:
    status, headers, response = call(with_body(door, body, is_base64=is_base64))

    assert status == 400
    assert "retry-after" not in headers
    assert response_problems(response) == []
    assert response["error"]["type"] == "InvalidRequest"


@pytest.mark.parametrize(
    ("workflow", "error", "expected"),
    [
        (workflows.one("NoSuchNode"), "WorkflowRejected", 422),
        (workflows.one("TestRaise", message="no"), "ExecutionFailed", 422),
        (workflows.one("TestOutOfMemory"), "OutOfMemory", 503),
    ],
)
@pytest.mark.usefixtures("comfyui")
def test_status_says_how_the_job_ended(workflow: Any, error: str, expected: int) -> None:
    status, headers, response = call(with_body("http_alb", json.dumps(event(workflow))))

    assert (status, response["error"]["type"]) == (expected, error)
    assert ("retry-after" in headers) == (expected == 503)


@pytest.mark.parametrize(
    ("job", "error", "retryable", "expected"),
    [
        ("failed", "DeadlineExceeded", False, 422),
        ("failed", "DeadlineExceeded", True, 504),
        ("cancelled", "Cancelled", False, 409),
        ("failed", "IdConflict", False, 409),
        ("failed", "Misconfigured", True, 503),
        ("completed", "UploadFailed", True, 200),
    ],
)
def test_status_and_retry_after_of_rare_ends(
    job: str, error: str, retryable: bool, expected: int
) -> None:
    failure = {"type": error, "message": "m", "retryable": retryable}
    response = {"status": job, "error": failure, "output": []}

    reply = answer("http_function_url", response)

    assert reply["statusCode"] == expected
    assert ("retry-after" in reply["headers"]) == (retryable and expected >= 500)


def test_job_that_another_invocation_runs_can_be_asked_for_when_its_claim_can_have_ended() -> None:
    error = AlreadyRunning("m", retry_after_s=11.2).as_dict()
    response = {"status": "failed", "error": error, "output": []}

    reply = answer("http_function_url", response)

    assert reply["statusCode"] == 503
    assert reply["headers"]["retry-after"] == "12"


@pytest.mark.parametrize(
    ("door", "path"),
    [
        ("http_api_gateway_v1", "/studio/generate/sync"),
        ("http_api_gateway_v1", "/studio/v2/generate/sync"),
        ("http_api_gateway_v2", "/generate/sync"),
        ("http_api_gateway_v2", "/studio/generate/sync"),
        ("http_api_gateway_v1", "/generate/sync/"),
    ],
)
def test_stage_and_base_path_are_left_out(door: str, path: str) -> None:
    http_event = {**with_path(door, path), "body": "{}", "isBase64Encoded": False}

    assert call(http_event)[0] == 400


@every_door
@pytest.mark.parametrize("path", ["/", "/generate/sync/x", "/generate/syncx", "/é"])
def test_other_path_is_a_404_that_names_the_list_of_routes(door: str, path: str) -> None:
    status, _, body = call(with_path(door, path))

    assert status == 404
    assert "GET /docs lists them" in body["message"]


@every_door
def test_what_a_function_without_a_queue_cannot_do_is_a_501(door: str) -> None:
    status, _, body = call(with_path(door, "/generate"))

    assert status == 501
    assert "JOBS_TABLE" in body["message"]


@pytest.mark.parametrize("door", ["http_alb", "http_function_url"])
def test_nothing_is_left_out_where_there_is_no_stage(door: str) -> None:
    assert call(with_path(door, "/x/generate/sync"))[0] == 404


@every_door
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "HEAD"])
def test_other_method_is_a_405_that_names_the_right_one(door: str, method: str) -> None:
    path = "/prod/generate/sync" if door == "http_api_gateway_v2" else "/generate/sync"

    status, headers, body = call(with_path(door, path, method))

    assert status == 405
    assert headers["allow"] == "POST"
    if method != "HEAD":
        assert "but POST /generate/sync" in body["message"]


@every_door
@pytest.mark.parametrize("value", [5, None, ["a"], [5], {"a": 1}, True])
@pytest.mark.parametrize("name", ["content-type", "content-encoding", "cookie"])
def test_header_that_is_not_a_string_does_not_matter(door: str, name: str, value: Any) -> None:
    http_event = with_body(door, "{}")
    field = "multiValueHeaders" if "multiValueHeaders" in http_event else "headers"
    http_event[field] = http_event[field] | {name: value}

    status, _, body = call(http_event)

    assert status == 400
    assert body["error"]["type"] == "InvalidRequest"


@pytest.mark.parametrize("door", ["http_alb", "http_alb_multi_value"])
def test_load_balancer_gets_its_status_description_and_its_kind_of_headers(door: str) -> None:
    reply = app.lambda_handler(with_body(door, "{}"), Context(100))

    assert reply["statusDescription"] == "400 Bad Request"
    assert ("multiValueHeaders" in reply) == (door == "http_alb_multi_value")


@every_door
def test_reply_is_never_larger_than_its_front_door_accepts(door: str) -> None:
    limit = (1 if "alb" in door else 6) * 1024 * 1024
    item = {"filename": "f", "base64": 'A"' * limit}
    response = {"status": "completed", "comfyui_response": {"p": {}}, "output": [item]}

    reply = answer(door, response)

    assert len(json.dumps(reply).encode()) <= limit
    body = json.loads(reply["body"])
    assert body["output"] == [{"filename": "f"}]
    assert "too large" in body["warnings"][0]


@pytest.mark.parametrize(
    "fields",
    [
        {"headers": {"host": "a:b:c"}},
        {"headers": {"x-forwarded-port": "no number"}},
        {"cookies": 5},
        {"rawQueryString": None},
        {"body": "\ud800"},
    ],
)
def test_event_that_no_service_sends_is_a_400(fields: dict[str, Any]) -> None:
    status, _, body = call({**sample("http_function_url"), **fields})

    assert status == 400
    assert body["message"].startswith("the HTTP event could not be read")


def test_call_leaves_the_signals_of_the_process_alone() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    threads = threading.active_count()

    call(with_path("http_function_url", "/health", "GET"))

    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert threading.active_count() == threads
    # asyncio would take the signals' file descriptor from handler/termination.py.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    fd = signal.set_wakeup_fd(writer)
    try:
        call(with_path("http_function_url", "/health", "GET"))
    finally:
        assert signal.set_wakeup_fd(fd) == writer
        os.close(reader)
        os.close(writer)
