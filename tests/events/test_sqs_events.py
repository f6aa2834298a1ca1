"""SQS messages that hold another source's event instead of a request."""

import json
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest

from handler import app
from handler.settings import PROJECT
from tests import workflows
from tests.conftest import Context, WebhookReceiver
from tests.events.samples import sample
from tests.events.test_s3 import BUCKET, KEY, Bucket, bucket
from tests.events.test_sqs import Queue, sqs
from tests.events.test_stepfunctions import Execution, execution
from tests.handler.test_jobs import response_of, start_handler
from tests.processes import wait_until
from tests.test_hostile_events import log
from tests.workflows import event

__all__ = ["bucket", "execution", "log", "sqs"]

pytestmark = [
    pytest.mark.usefixtures("comfyui"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

SAMPLE_ETAG = "b21b84d653bb07b05b1e6b33684dc11b"


def sample_for(state: dict[str, str], name: str) -> Any:
    """A sample that names this object's state."""
    return json.loads(json.dumps(sample(name)).replace(SAMPLE_ETAG, state["etag"]))


def notification(*objects: tuple[str, dict[str, str]]) -> dict[str, Any]:
    """S3's notification of several objects, each with its key."""
    (record,) = sample("s3_object_created")["Records"]
    records = []
    for key, state in objects:
        created = {**record["s3"]["object"], "key": key, "eTag": state["etag"]}
        records.append({**record, "s3": {**record["s3"], "object": created}})
    return {"Records": records}


@pytest.fixture
def statuses(webhook_receiver: WebhookReceiver, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The status of every job of the test, by id."""
    monkeypatch.setenv("WEBHOOK_URL", webhook_receiver.url)
    return lambda: {body["id"]: body["status"] for body in webhook_receiver.bodies()}


@pytest.fixture
def queue(sqs: Any) -> Queue:
    return Queue(sqs, str(uuid.uuid4()))


@pytest.fixture
def dead(sqs: Any, monkeypatch: pytest.MonkeyPatch) -> Queue:
    dead = Queue(sqs, str(uuid.uuid4()))
    monkeypatch.setenv("DEAD_LETTER_QUEUE_URL", dead.url)
    return dead


@pytest.mark.parametrize(
    "name", ["sqs_s3_notification", "sqs_s3_notification_in_sns_envelope", "sqs_eventbridge_s3"]
)
def test_new_object_is_run_in_every_envelope_of_its_event(
    bucket: Bucket, statuses: Callable[[], dict[str, str]], name: str
) -> None:
    state = bucket.put(workflows.image())

    reply = app.lambda_handler(sample_for(state, name), Context(100))

    assert reply == {"batchItemFailures": []}
    assert statuses() == {f"{BUCKET}/{KEY}/{state['etag']}": "completed"}


def test_detail_of_an_eventbridge_event_is_run(statuses: Callable[[], dict[str, str]]) -> None:
    reply = app.lambda_handler(sample("sqs_eventbridge_request"), Context(100))

    assert reply == {"batchItemFailures": []}
    assert statuses() == {"eventbridge-1": "completed"}


@pytest.mark.parametrize(
    ("name", "reply"),
    [("sqs_s3_test_event", {"batchItemFailures": []}), ("s3_test_event", {"responses": []})],
)
def test_test_event_of_s3_is_ignored(
    statuses: Callable[[], dict[str, str]], log: Callable[[], str], name: str, reply: Any
) -> None:
    assert app.lambda_handler(sample(name), Context(100)) == reply

    assert "S3's test event: ignored" in log()
    assert statuses() == {}


def test_message_that_holds_no_job_is_deleted(queue: Queue, dead: Queue) -> None:
    queue.send(notification(("cat.png", {"etag": "e"})))
    queue.send(sample("s3_object_removed"))

    assert queue.deliver() == []
    assert dead.bodies() == []


def test_every_request_of_a_message_is_run_before_it_goes_back(
    queue: Queue,
    bucket: Bucket,
    dead: Queue,
    statuses: Callable[[], dict[str, str]],
    log: Callable[[], str],
) -> None:
    requests = {
        "again": event(workflows.one("TestOutOfMemory"), request_id="again"),
        "never": event(workflows.one("NoSuchNode"), request_id="never"),
        "good": event(workflows.image(), request_id="good"),
    }
    body = notification(*((f"{k}.json", bucket.put(r, f"{k}.json")) for k, r in requests.items()))
    queue.send(body)
    queue.send(event(workflows.image(), request_id="other"))

    assert [json.loads(text) for text in queue.deliver()] == [body]

    assert statuses() == {"never": "failed", "good": "completed", "other": "completed"}
    ends = [json.loads(line) for line in log().splitlines() if '"job.failed"' in line]
    assert [end["request_id"] for end in ends] == ["again", "never"]
    assert dead.bodies() == []


def test_message_with_one_request_that_failed_for_good_is_a_dead_letter(
    queue: Queue, bucket: Bucket, dead: Queue, statuses: Callable[[], dict[str, str]]
) -> None:
    requests = {
        "never": event(workflows.one("NoSuchNode"), request_id="never"),
        "good": event(workflows.image(), request_id="good"),
    }
    body = notification(*((f"{k}.json", bucket.put(r, f"{k}.json")) for k, r in requests.items()))
    queue.send(body)

    assert queue.deliver() == []

    (message,) = dead.take()
    assert json.loads(message["Body"]) == body
    assert message["MessageAttributes"]["ErrorType"]["StringValue"] == "WorkflowRejected"
    assert statuses() == {"never": "failed", "good": "completed"}


@pytest.mark.parametrize("body", ["sqs_s3_notification", "sqs_eventbridge_s3"])
def test_only_the_message_of_an_unreadable_object_goes_back(
    queue: Queue,
    dead: Queue,
    statuses: Callable[[], dict[str, str]],
    log: Callable[[], str],
    body: str,
) -> None:
    # The bucket does not exist now; it may later.
    unreadable = sample(body)["Records"][0]["body"]
    queue.send(unreadable)
    queue.send(event(workflows.image(), request_id="other"))

    assert queue.deliver() == [unreadable]
    assert f"TryAgain: s3://{BUCKET}/{KEY} cannot be read: NoSuchBucket" in log()
    assert statuses() == {"other": "completed"}
    assert dead.bodies() == []


def test_objects_beside_one_that_cannot_be_read_are_run(
    queue: Queue, bucket: Bucket, statuses: Callable[[], dict[str, str]]
) -> None:
    request = event(workflows.image(), request_id="readable")
    body = notification(("there.json", bucket.put(request, "there.json")))
    elsewhere = sample("s3_object_created")["Records"][0]
    elsewhere["s3"]["bucket"]["name"] = "no-such-bucket"
    body["Records"].insert(0, elsewhere)
    queue.send(body)

    assert len(queue.deliver()) == 1
    assert statuses() == {"readable": "completed"}


def test_event_of_an_unknown_source_is_a_dead_letter(queue: Queue, dead: Queue) -> None:
    queue.send({"Records": [{"eventSource": "aws:kinesis", "kinesis": {"data": "c2VjcmV0"}}]})

    assert queue.deliver() == []

    (message,) = dead.take()
    reason = message["MessageAttributes"]["ErrorMessage"]["StringValue"]
    assert "the keys Records" in reason
    assert "c2VjcmV0" not in reason


def test_topic_may_send_the_function_the_event_of_a_new_object(bucket: Bucket) -> None:
    state = bucket.put(workflows.image())

    (response,) = app.lambda_handler(sample_for(state, "sns_s3_notification"), Context(100))[
        "responses"
    ]

    assert (response["id"], response["status"]) == (f"{BUCKET}/{KEY}/{state['etag']}", "completed")


@pytest.mark.parametrize(
    ("workflow", "status"),
    [(workflows.image(), "SUCCEEDED"), (workflows.one("TestOutOfMemory"), "FAILED")],
)
def test_task_behind_a_queue_gets_its_result_and_its_message_is_deleted(
    queue: Queue, execution: Execution, dead: Queue, workflow: Any, status: str
) -> None:
    task = execution()
    queue.send({"TaskToken": task.token, **event(workflow)})

    assert queue.deliver() == []
    assert task.end()["status"] == status
    assert dead.bodies() == []


def test_task_in_the_envelope_of_a_topic_gets_its_result(
    queue: Queue, execution: Execution
) -> None:
    task = execution()
    request = {"TaskToken": task.token, **event(workflows.image())}
    envelope = {"Type": "Notification", "TopicArn": "arn:aws:sns:us-east-1:123456789012:jobs"}
    queue.send({**envelope, "Message": json.dumps(request)})

    assert queue.deliver() == []
    assert task.end()["status"] == "SUCCEEDED"


def test_task_behind_eventbridge_and_a_queue_gets_its_result(
    queue: Queue, execution: Execution
) -> None:
    task = execution()
    body = sample("sqs_eventbridge_request")["Records"][0]["body"]
    detail = {"TaskToken": task.token, **event(workflows.image())}
    queue.send({**json.loads(body), "detail": detail})

    assert queue.deliver() == []
    assert task.end()["status"] == "SUCCEEDED"


def test_second_delivery_of_a_running_task_waits_for_its_end(
    queue: Queue, execution: Execution, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOBS_DB", str(tmp_path / "jobs.sqlite"))
    task = execution()
    go_on = tmp_path / "go-on"
    request = event(workflows.one("TestWait", file=str(go_on)), request_id="task")
    first = start_handler(request, seconds=60)
    assert first.stdout
    assert any("job.queued" in line for line in first.stdout)
    queue.send({"TaskToken": task.token, **request})

    assert len(queue.deliver()) == 1
    go_on.touch()
    response_of(first)
    assert wait_until(lambda: bool(queue.waiting()))
    assert queue.deliver() == []

    assert task.end()["status"] == "SUCCEEDED"


def test_documented_state_machine_gets_the_response(sqs: Any, queue: Queue) -> None:
    guide = (PROJECT / "docs" / "deploy-aws.md").read_text()
    (snippet,) = re.findall(r"```json\n(.*?)```", guide, re.DOTALL)
    machines = boto3.session.Session().client("stepfunctions")
    machine = machines.create_state_machine(
        name=str(uuid.uuid4()),
        definition=snippet.replace("JOBS_QUEUE_URL", queue.url),
        roleArn="arn:aws:iam::123456789012:role/states",
    )["stateMachineArn"]
    request = json.dumps(event(workflows.image(), request_id="from the guide"))

    task = machines.start_execution(stateMachineArn=machine, input=request)["executionArn"]
    assert wait_until(lambda: bool(queue.waiting()))
    assert queue.deliver() == []

    assert wait_until(lambda: _status(machines, task) == "SUCCEEDED")
    output = json.loads(machines.describe_execution(executionArn=task)["output"])
    assert (output["id"], output["status"]) == ("from the guide", "completed")
    machines.close()


def _status(machines: Any, task: str) -> Any:
    return machines.describe_execution(executionArn=task)["status"]


def test_message_goes_back_if_step_functions_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    batch = sample("sqs_stepfunctions_task_token")

    reply = app.lambda_handler(batch, Context(100))

    assert reply == {"batchItemFailures": [{"itemIdentifier": batch["Records"][0]["messageId"]}]}
