"""A waiting task of a real state machine (moto's interpreter) gets the result of its job."""

import json
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import boto3
import pytest

from events import stepfunctions
from events.event_context import EventContext
from handler import app
from tests import workflows
from tests.conftest import Context
from tests.events.samples import sample
from tests.processes import wait_until
from tests.test_hostile_events import log
from tests.workflows import event

__all__ = ["log"]

Execution = Callable[..., "Task"]


class Task:
    """One execution whose only state waits for its token, which comes from a queue."""

    def __init__(self, clients: dict[str, Any], name: str, state: dict[str, Any]) -> None:
        sqs, self._machines = clients["sqs"], clients["stepfunctions"]
        queue = sqs.create_queue(QueueName=name)["QueueUrl"]
        body = {"TaskToken.$": "$$.Task.Token"}
        machine = {
            "StartAt": "Generate",
            "States": {
                "Generate": {
                    "Type": "Task",
                    "Resource": "arn:aws:states:::sqs:sendMessage.waitForTaskToken",
                    "Parameters": {"QueueUrl": queue, "MessageBody": body},
                    "End": True,
                    **state,
                }
            },
        }
        arn = self._machines.create_state_machine(
            name=name,
            definition=json.dumps(machine),
            roleArn="arn:aws:iam::123456789012:role/states",
        )["stateMachineArn"]
        self._execution = self._machines.start_execution(stateMachineArn=arn)["executionArn"]
        (message,) = sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=5)["Messages"]
        self.token: str = json.loads(message["Body"])["TaskToken"]

    def end(self) -> Any:
        """The execution after its end."""
        assert wait_until(lambda: self._ask()["status"] != "RUNNING")
        return self._ask()

    def _ask(self) -> Any:
        return self._machines.describe_execution(executionArn=self._execution)


@pytest.fixture
def execution(aws: str) -> Iterator[Execution]:
    session = boto3.session.Session()
    clients = {name: session.client(name) for name in ("sqs", "stepfunctions")}
    yield lambda **state: Task(clients, str(uuid.uuid4()), state)
    for client in clients.values():
        client.close()


def run(task: Task, request: dict[str, Any], name: str = "task_token") -> dict[str, Any]:
    return app.lambda_handler({name: task.token, **request}, Context(100))


@pytest.mark.usefixtures("comfyui")
@pytest.mark.parametrize("name", stepfunctions.TOKEN_NAMES)
def test_response_is_the_output_of_the_task(execution: Execution, name: str) -> None:
    task = execution()

    response = run(task, event(workflows.image(), request_id="7"), name)

    end = task.end()
    assert end["status"] == "SUCCEEDED"
    assert json.loads(end["output"]) == response
    assert (response["id"], response["status"]) == ("7", "completed")


@pytest.mark.usefixtures("comfyui")
def test_whole_input_of_the_state_may_be_the_request(execution: Execution) -> None:
    task = execution()

    assert run(task, {"input": event(workflows.image())})["status"] == "completed"
    assert task.end()["status"] == "SUCCEEDED"


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (event(workflows.one("TestOutOfMemory")), "OutOfMemory"),
        (event(workflows.one("NoSuchNode")), "WorkflowRejected"),
        ({"input": 7}, "InvalidRequest"),
        ({}, "InvalidRequest"),
    ],
)
@pytest.mark.usefixtures("comfyui")
def test_failure_is_named_so_that_the_state_machine_can_retry_by_name(
    execution: Execution, request_: dict[str, Any], error: str
) -> None:
    task = execution()

    response = run(task, request_)

    end = task.end()
    assert (end["status"], end["error"]) == ("FAILED", error)
    assert response["error"]["type"] == error


@pytest.mark.usefixtures("comfyui")
def test_heartbeat_keeps_a_long_job_alive(
    execution: Execution, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stepfunctions, "HEARTBEAT_S", 0.2)
    task = execution(HeartbeatSeconds=1)

    response = run(task, event(workflows.one("TestSleep", seconds=2.5, deaf=False)))

    assert response["status"] == "completed"
    assert task.end()["status"] == "SUCCEEDED"


@pytest.mark.usefixtures("comfyui")
def test_task_that_is_over_changes_nothing_and_its_token_is_not_logged(
    execution: Execution, log: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stepfunctions, "HEARTBEAT_S", 0.05)
    task = execution(TimeoutSeconds=1)

    response = run(task, event(workflows.one("TestSleep", seconds=3, deaf=False)))

    assert task.end()["error"] == "States.Timeout"
    assert response["status"] == "completed"
    assert "does not wait for this job any more" in log()
    # One before the job and one in it; the second ends the timer.
    assert log().count("heartbeat was refused") == 2
    assert task.token not in log()


class TimedOut(BaseHTTPRequestHandler):
    """Step Functions as AWS answers for a task that is over; moto says InvalidToken."""

    def do_POST(self) -> None:
        body = b'{"__type": "TaskTimedOut", "message": "Provided task does not exist anymore"}'
        self.send_response(400)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.mark.usefixtures("aws")
def test_job_of_a_task_that_is_over_already_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with HTTPServer(("127.0.0.1", 0), TimedOut) as server:
        Thread(target=server.handle_request, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("AWS_ENDPOINT_URL_SFN", url)

        response = app.lambda_handler(sample("stepfunctions_task_token"), Context(100))

    assert response == {"skipped": "Step Functions does not wait for this task: TaskTimedOut"}


@pytest.mark.usefixtures("aws", "comfyui")
def test_unknown_token_is_not_logged_and_its_job_is_run(
    log: Callable[[], str],
) -> None:
    task = sample("stepfunctions_task_token")

    assert app.lambda_handler(task, Context(100))["id"] == "stepfunctions-1"
    assert '"reason":"InvalidToken"' in log()
    assert task["task_token"] not in log()


@pytest.mark.usefixtures("aws")
def test_unreachable_step_functions_fail_the_invocation_without_the_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")

    with pytest.raises(stepfunctions.NotTold, match="EndpointConnectionError"):
        app.lambda_handler({"task_token": "secret", "input": {}}, Context(100))


@pytest.mark.usefixtures("comfyui")
def test_task_behind_eventbridge_gets_its_result(execution: Execution) -> None:
    task = execution()
    delivery = sample("eventbridge_request")
    delivery["detail"] = {"task_token": task.token, **event(workflows.image())}

    assert app.lambda_handler(delivery, Context(100)) == {"responses": []}
    assert json.loads(task.end()["output"])["id"] == delivery["id"]


def test_output_of_many_files_names_them_without_urls(execution: Execution) -> None:
    task = execution()
    item = {"filename": "f.png", "local_path": "/output/many/f.png", "url": "https://" + "u" * 1300}
    response = {"id": "many", "status": "completed", "comfyui_response": {}, "output": [item] * 200}

    context = EventContext(handle=lambda _, **__: response)
    stepfunctions.process({"task_token": task.token, "input": {}}, context)

    output = json.loads(task.end()["output"])
    assert output["output"] == [{"filename": "f.png", "local_path": "/output/many/f.png"}] * 200
    assert "the files' URLs" in output["warnings"][-1]


@pytest.mark.usefixtures("comfyui")
def test_output_is_never_larger_than_step_functions_accept(execution: Execution) -> None:
    task = execution()
    text = "y" * stepfunctions.MAX_OUTPUT_BYTES

    response = run(task, event(workflows.text(text)))

    output = json.loads(task.end()["output"])
    assert len(json.dumps(output)) <= stepfunctions.MAX_OUTPUT_BYTES
    assert output["output"][0]["local_path"] == response["output"][0]["local_path"]
    assert "too large" in output["warnings"][-1]
