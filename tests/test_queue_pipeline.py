"""A machine that runs the jobs of a queue is killed, and another one goes on.

No job is lost, and none is run again after its success. All parts are real except SQS, which is
moto's server.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from handler.settings import PROJECT
from runtime.local_s3 import LocalS3
from tests import workflows
from tests.aws import moto_client, objects_in
from tests.processes import processes_with, wait_until
from tests.workflows import event, node

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1000),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

JOBS, DUPLICATES = 30, 10
# The messages of a killed machine stay hidden for a minute, and each failure adds its back-off.
PATIENCE_S = 400.0


class Queues:
    """The queue of jobs and its dead-letter queue, as a sender and an operator use them."""

    def __init__(self, sqs: Any) -> None:
        self._sqs = sqs
        self.dead_letter_url = sqs.create_queue(QueueName=f"dead-{uuid4()}")["QueueUrl"]
        arn = self._attributes(self.dead_letter_url)["QueueArn"]
        redrive = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": 3})
        attributes = {"RedrivePolicy": redrive}
        self.url = sqs.create_queue(QueueName=f"jobs-{uuid4()}", Attributes=attributes)["QueueUrl"]

    def send(self, body: str) -> None:
        self._sqs.send_message(QueueUrl=self.url, MessageBody=body)

    def count(self) -> int:
        """How many messages are in the queue of jobs, hidden or not."""
        attributes = self._attributes(self.url)
        names = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
        return sum(int(attributes[name]) for name in names)

    def dead_letters(self) -> dict[str, str]:
        """The dead letters: the type of the error by body."""
        types = {}
        while messages := self._sqs.receive_message(
            QueueUrl=self.dead_letter_url, MaxNumberOfMessages=10, MessageAttributeNames=["All"]
        ).get("Messages"):
            for message in messages:
                error_type = message.get("MessageAttributes", {}).get("ErrorType", {})
                types[message["Body"]] = error_type.get("StringValue", "")
        return types

    def _attributes(self, url: str) -> Any:
        return self._sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]


@pytest.fixture
def queues(monkeypatch: pytest.MonkeyPatch) -> Iterator[Queues]:
    with moto_client(monkeypatch, "sqs") as client:
        yield Queues(client)


@contextmanager
def machine(
    folder: Path, name: str, queues: Queues, s3: LocalS3, prefix: Sequence[str] = ()
) -> Iterator["Machine"]:
    """A running `serve`; `prefix` is a command that runs it."""
    environ = os.environ | s3.environ | {
        "WORKER_DIR": str(folder / "worker"),
        "COMFYUI_DATA_DIR": str(folder / "data"),
        "DEAD_LETTER_QUEUE_URL": queues.dead_letter_url,
        "SERVE_PORT": "0",
        "SERVE_CONCURRENCY": "2",
    }  # fmt: skip
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "runtime", "serve", "--queue", queues.url],
            cwd=PROJECT,
            env=environ,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield Machine(process, folder / f"{name}.log")
        finally:
            process.terminate()
            process.wait(40)


class Machine:
    """A running `serve`, and the log lines of its handlers."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process, self._log = process, log

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def events(self) -> list[dict[str, Any]]:
        """The handlers' log lines that have an `event`."""
        lines = self.log.splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and '"event"' in line]

    def count(self, name: str) -> int:
        return sum(each["event"] == name for each in self.events())


def job(request_id: str) -> str:
    """A job that is long enough to be killed while it runs."""
    workflow = workflows.image() | {"7": node("TestSleep", seconds=0.2, deaf=False)}
    return json.dumps(event(workflow, request_id=request_id))


def test_killed_machine_costs_no_job_and_no_job_runs_after_its_success(
    tmp_path: Path, queues: Queues, s3: LocalS3
) -> None:
    jobs = {f"pipeline-{number}": job(f"pipeline-{number}") for number in range(JOBS)}
    poison = {
        "{not json": "InvalidRequest",
        "[]": "InvalidRequest",
        json.dumps(event({}, request_id="empty")): "InvalidRequest",
        json.dumps(event(workflows.one("NoSuchNode"), request_id="node")): "WorkflowRejected",
        json.dumps(
            event(workflows.one("TestRaise", message="no"), request_id="raise")
        ): "ExecutionFailed",
    }
    killer = json.dumps(event(workflows.one("TestKill"), request_id="killer"))
    bodies = [*jobs.values(), *list(jobs.values())[:DUPLICATES], *poison, killer]
    for body in sorted(bodies, key=hash):
        queues.send(body)

    with machine(tmp_path, "first", queues, s3) as first:
        assert wait_until(lambda: first.count("job.completed") >= JOBS // 2, PATIENCE_S)
        first.process.kill()
        first.process.wait()
    environment = f"WORKER_DIR={tmp_path}/worker"
    assert wait_until(lambda: not processes_with(environment))
    with machine(tmp_path, "second", queues, s3) as second:
        assert wait_until(lambda: queues.count() == 0, PATIENCE_S), second.events()[-10:]

    images = Counter(key.partition("/")[0] for key in objects_in(s3) if key.endswith(".png"))
    assert {name: images[name] for name in jobs} == dict.fromkeys(jobs, 1)
    assert queues.dead_letters() == poison | {killer: "KilledTheWorker"}
    assert not processes_with(environment)
    assert_nothing_runs_after_its_success([*first.events(), *second.events()])


def assert_nothing_runs_after_its_success(events: list[dict[str, Any]]) -> None:
    succeeded: set[str] = set()
    for each in events:
        if each["event"] == "node.started":
            assert each["request_id"] not in succeeded
        # The line of the end may be lost with its machine; a repeat has one, too.
        if each["event"] in ("job.completed", "job.repeated"):
            succeeded.add(each["request_id"])
    assert len(succeeded) == JOBS
