"""Repeated requests: one run for each id, by real handlers over SQLite and moto's DynamoDB.

What the stores promise alone is in test_job_stores.py, what claims promise in test_claims.py.
"""

import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from events.contract import response_problems
from handler import app
from handler.api.job_board import JobBoard
from handler.emit import subscribed
from handler.job_events import JobEvent, WorkerStarting
from handler.jobs.store import open_store
from handler.settings import PROJECT
from handler.termination import EXIT_STATUS
from runtime.local_s3 import LocalS3
from tests import workflows
from tests.aws import bucket_client, objects_in
from tests.conftest import Context, WebhookReceiver, run, worker_status
from tests.handler.job_tables import JobTable, SqliteTable, lease_until
from tests.handler.test_storage import s3_fields
from tests.processes import wait_until
from tests.worker import comfyui_pid
from tests.workflows import event, image, one

pytestmark = [
    pytest.mark.usefixtures("comfyui"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.usefixtures("sqlite"),
]

CANARY = "canary-4711"
# Long enough for a handler on a busy machine, which renews its claim three times meanwhile.
LEASE_S = 3.0
# A handler of its own: an event on stdin, the log and then the response on stdout.
HANDLER = """
import json, sys
from handler import app
from handler.jobs import held_claim
from tests.conftest import Context
held_claim.LEASE_S = float(sys.argv[2])
event = json.load(sys.stdin)
print(json.dumps(app.lambda_handler(event, Context(float(sys.argv[1])))))
"""


def start_handler(
    request: Any, *, seconds: float, lease_s: float = LEASE_S
) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HANDLER, str(seconds), str(lease_s)],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    process.stdin.write(json.dumps(request))
    process.stdin.close()
    return process


def ended(handlers: list[subprocess.Popen[str]]) -> list[subprocess.Popen[str]]:
    return [handler for handler in handlers if handler.poll() is not None]


def response_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout
    with process.stdout:
        last = process.stdout.read().splitlines()[-1]
    assert process.wait(10) == 0
    response: dict[str, Any] = json.loads(last)
    return response


def error_of(response: dict[str, Any]) -> str:
    assert response_problems(response) == []
    return str(response.get("error", {}).get("type", ""))


@pytest.mark.usefixtures("table")
def test_repeat_gets_the_same_response_and_no_second_webhook(
    webhook_receiver: WebhookReceiver,
) -> None:
    hook = {"url": webhook_receiver.url}
    workflow = workflows.text("number __RANDOM_INT__")

    first = run(workflow, request_id="twice", webhook=hook)
    again = run(workflow, request_id="twice", webhook=hook)

    assert error_of(first) == ""
    assert again == json.loads(json.dumps(first))
    assert len(webhook_receiver.calls) == 1


@pytest.mark.usefixtures("table")
def test_id_with_anything_else_in_the_request_is_refused(
    webhook_receiver: WebhookReceiver,
) -> None:
    workflow = image()
    first = run(workflow, request_id="mine")
    others: list[dict[str, Any]] = [
        {"workflow": image()},
        {"workflow": workflow, "return_outputs_as_base64": True},
        {"workflow": workflow, "webhook": {"url": webhook_receiver.url}},
    ]

    responses = [run(request_id="mine", **request) for request in others]

    assert [error_of(response) for response in responses] == ["IdConflict"] * 3
    assert {response["error"]["retryable"] for response in responses} == {False}
    assert {json.dumps(response["comfyui_response"]) for response in responses} == {"{}"}
    # The receiver would take the call for the end of the job that has the id.
    assert webhook_receiver.calls == []
    assert run(workflow, request_id="mine") == json.loads(json.dumps(first))


@pytest.mark.usefixtures("table")
def test_of_two_requests_that_race_for_one_id_one_is_refused() -> None:
    requests = [
        event(one("TestSleep", seconds=seconds, deaf=False), request_id="twins")
        for seconds in (3.0, 3.1)
    ]

    responses = [response_of(p) for p in [start_handler(r, seconds=60) for r in requests]]

    assert sorted(error_of(response) for response in responses) == ["", "IdConflict"]
    for request, response in zip(requests, responses, strict=True):
        assert app.lambda_handler(request, Context(60))["status"] == response["status"]


@pytest.mark.usefixtures("table")
def test_two_handlers_that_race_for_one_id_run_it_once(tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    request = event(one("TestWait", file=str(go_on)), request_id="race")

    handlers = [start_handler(request, seconds=60) for _ in range(2)]
    assert wait_until(lambda: len(ended(handlers)) == 1, 60)
    go_on.touch()

    responses = [response_of(handler) for handler in handlers]
    (done,) = [response for response in responses if not error_of(response)]
    (late,) = [response for response in responses if error_of(response)]
    assert error_of(late) == "AlreadyRunning"
    assert late["error"]["retryable"] is True
    assert app.lambda_handler(request, Context(60)) == done


def test_many_handlers_that_make_the_file_at_once_run_a_job_once(tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    request = event(one("TestWait", file=str(go_on)), request_id="crowd")

    handlers = [start_handler(request, seconds=60) for _ in range(6)]
    assert wait_until(lambda: len(ended(handlers)) == 5, 60)
    go_on.touch()

    assert sorted(error_of(response_of(h)) for h in handlers) == ["", *["AlreadyRunning"] * 5]


@pytest.mark.usefixtures("table")
def test_claim_of_a_killed_handler_ends_soon(webhook_receiver: WebhookReceiver) -> None:
    hook = {"url": webhook_receiver.url}
    request = event(one("TestSleep", seconds=0.5, deaf=False), request_id="killed", webhook=hook)
    handler = start_handler(request, seconds=600)
    kill_at(handler, "job.queued")

    assert error_of(app.lambda_handler(request, Context(60))) == "AlreadyRunning"
    assert webhook_receiver.calls == []
    assert wait_until(lambda: error_of(app.lambda_handler(request, Context(60))) == "")
    assert [body["status"] for body in webhook_receiver.bodies()] == ["completed"]


@pytest.mark.usefixtures("table")
def test_claim_of_a_stopped_handler_ends_with_it(webhook_receiver: WebhookReceiver) -> None:
    hook = {"url": webhook_receiver.url}
    request = event(one("TestSleep", seconds=0.5, deaf=False), request_id="stopped", webhook=hook)
    # Without the stop, the test would wait for the lease.
    handler = start_handler(request, seconds=600, lease_s=600)
    end_at(handler, "job.queued", signal.SIGTERM)

    assert handler.returncode == EXIT_STATUS
    assert webhook_receiver.calls == []
    assert error_of(app.lambda_handler(request, Context(60))) == ""


def test_job_that_outlives_its_first_claim_keeps_it(table: JobTable, tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    request = event(one("TestWait", file=str(go_on)), request_id="long")
    handler = start_handler(request, seconds=60)
    assert handler.stdout
    assert any("job.queued" in line for line in handler.stdout)
    first_end = lease_until(table)

    assert wait_until(lambda: lease_until(table) > first_end + LEASE_S)
    assert error_of(app.lambda_handler(request, Context(60))) == "AlreadyRunning"
    go_on.touch()
    assert error_of(response_of(handler)) == ""


@pytest.mark.usefixtures("table")
def test_handler_killed_during_its_webhook_call_leaves_the_call_to_a_repeat(
    webhook_receiver: WebhookReceiver,
) -> None:
    webhook_receiver.delay_s = 5.0
    hook = {"url": webhook_receiver.url, "secret": CANARY}
    request = event(workflows.text("__RANDOM_INT__"), request_id="told", webhook=hook)
    handler = start_handler(request, seconds=600)
    assert handler.stdout
    with handler.stdout:
        assert wait_until(lambda: bool(webhook_receiver.calls))
        handler.kill()
    handler.wait(10)
    webhook_receiver.delay_s = 0.0

    # The call may still be under way, and a success would end the deliveries of a message.
    assert error_of(app.lambda_handler(request, Context(60))) == "AlreadyRunning"
    assert wait_until(lambda: error_of(app.lambda_handler(request, Context(60))) == "")
    app.lambda_handler(request, Context(60))

    (killed, first_body), (repeat, body) = webhook_receiver.calls
    assert repeat["webhook-id"] == killed["webhook-id"]
    # The random number: the workflow did not run again.
    assert json.loads(body) == json.loads(first_body)


def test_killed_attempt_leaves_no_second_artifact_in_the_bucket(
    s3: LocalS3, tmp_path: Path
) -> None:
    fields = s3_fields(s3)
    bucket_client(s3).put_object(Bucket=s3.bucket_name, Key="once/other.png", Body=b"other")
    # The job goes on after the upload, until it is killed.
    go_on = tmp_path / "go on"
    workflow = {
        "1": workflows.node("TestNewName", value=str(go_on)),
        "2": workflows.node("TestWait", file=["1", 0]),
    }
    request = event(workflow, request_id="once", s3=fields)
    kill_at(start_handler(request, seconds=600), "artifact.stored")
    # Without its cache ComfyUI makes the file again, under another name.
    os.kill(comfyui_pid(worker_status()), signal.SIGKILL)
    go_on.touch()
    left = objects_in(s3, "once/")
    assert wait_until(lambda: error_of(app.lambda_handler(request, Context(60))) == "")
    response = app.lambda_handler(request, Context(60))

    assert len(left) == 2
    kept = objects_in(s3, "once/")
    results = {f"once/{item['filename']}" for item in response["output"]}
    assert kept == {"once/other.png", *results}
    assert kept != left


def kill_at(handler: subprocess.Popen[str], event_name: str) -> None:
    end_at(handler, event_name, signal.SIGKILL)


def end_at(handler: subprocess.Popen[str], event_name: str, number: signal.Signals) -> None:
    """Send the signal when the handler logs this event, and wait for its end."""
    assert handler.stdout
    with handler.stdout:
        assert any(event_name in line for line in handler.stdout)
        handler.send_signal(number)
        handler.wait(10)


@pytest.mark.usefixtures("table")
def test_retryable_failure_can_be_repeated() -> None:
    workflow = one("TestOutOfMemory")
    first = run(workflow, request_id="again")

    again = run(workflow, request_id="again")

    assert error_of(first) == error_of(again) == "OutOfMemory"
    assert first["timings"] != again["timings"]


@pytest.mark.usefixtures("table")
def test_failed_job_that_is_sent_again_runs_again() -> None:
    workflow = one("TestRaise", message="the reason")

    first = run(workflow, request_id="broken")
    again = run(workflow, request_id="broken")

    assert error_of(first) == error_of(again) == "ExecutionFailed"
    assert first["timings"] != again["timings"]


def test_job_that_is_cancelled_after_its_failure_does_not_come_again(sqlite: SqliteTable) -> None:
    """After the second death of ComfyUI, the handler waits for the next one."""
    workflow = one("TestKill")
    assert error_of(run(workflow, request_id="kills")) == "WorkerUnavailable"
    assert run(image())["status"] == "completed"

    def cancel(event: JobEvent) -> None:
        if isinstance(event, WorkerStarting):
            with closing(open_store(sqlite.settings)) as store:
                JobBoard(store, keep_s=60).cancel("kills")

    with subscribed(cancel):
        response = run(workflow, request_id="kills")

    assert response["status"] == "cancelled"
    assert "after a failure: ComfyUI died" in response["message"]
    assert run(workflow, request_id="kills") == response


def test_id_of_a_request_that_was_refused_before_it_ran_is_free() -> None:
    assert error_of(run(one("NoSuchNode"), request_id="mended")) == "WorkflowRejected"

    assert error_of(run(image(), request_id="mended")) == ""


def test_batch_with_a_message_that_came_twice_runs_it_once(
    webhook_receiver: WebhookReceiver,
) -> None:
    body = json.dumps(event(image(), request_id="1", webhook={"url": webhook_receiver.url}))
    records = [{"messageId": n, "eventSource": "aws:sqs", "body": body} for n in "ab"]

    assert app.lambda_handler({"Records": records}, Context(60)) == {"batchItemFailures": []}
    assert len(webhook_receiver.calls) == 1


def test_response_is_forgotten_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBS_EXPIRE", "0")
    workflow = image()
    first = run(workflow, request_id="old")

    assert wait_until(lambda: run(workflow, request_id="old")["timings"] != first["timings"])


@pytest.mark.parametrize("request_id", ["", None])
def test_request_without_an_id_is_on_record_under_its_new_one(
    sqlite: SqliteTable, request_id: str | None
) -> None:
    response = run(image(), request_id=request_id)

    assert error_of(response) == ""
    assert [item["id"] for item in sqlite.items()] == [f"id#{response['id']}"]


def test_without_a_store_every_request_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOBS_DB")

    assert error_of(run(image(), request_id="off")) == error_of(run(image(), request_id="off"))


@pytest.mark.parametrize(
    "path", ["/proc/no/jobs.sqlite", "/dev/full", str(PROJECT), str(PROJECT / "LICENSE")]
)
def test_broken_file_costs_no_job(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBS_DB", path)

    assert error_of(run(image(), request_id="unclaimed")) == ""


@pytest.mark.usefixtures("dynamodb")
def test_table_that_is_missing_costs_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBS_TABLE", "no-such-table")

    assert error_of(run(image(), request_id="unclaimed")) == ""


@pytest.mark.usefixtures("dynamodb")
def test_table_that_does_not_answer_costs_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", "http://127.0.0.1:9")

    assert error_of(run(image(), request_id="unclaimed")) == ""


def test_no_secret_is_stored(sqlite: SqliteTable, webhook_receiver: WebhookReceiver) -> None:
    hook = {"url": f"{webhook_receiver.url}?token={CANARY}", "secret": CANARY}

    run(image(), request_id="secret", webhook=hook, s3={"secret_access_key": CANARY})

    files = list(sqlite.path.parent.iterdir())
    stored = b"".join(path.read_bytes() for path in files)
    assert b"COMPLETED" in stored
    assert CANARY.encode() not in stored
    assert {path.stat().st_mode & 0o077 for path in files} == {0}


@pytest.mark.usefixtures("dynamodb")
def test_large_response_is_stored_without_what_comfyui_reported() -> None:
    workflow = workflows.text("y" * 300_000)
    first = run(workflow, request_id="large")

    again = run(workflow, request_id="large")

    assert error_of(again) == ""
    assert again["output"][0]["filename"] == first["output"][0]["filename"]
    assert list(again["comfyui_response"]) == ["execution_details"]
    assert "too large" in again["warnings"][-1]
