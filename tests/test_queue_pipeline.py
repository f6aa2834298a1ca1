"""A machine works off a queue, is killed in the middle, and another one goes on: nothing is lost,
and nothing is done twice. All parts are the real ones but SQS, which is moto's server.
"""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
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
    pytest.mark.timeout(500),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

JOBS, DUPLICATES = 30, 10
# A machine that vanishes leaves its messages hidden for a minute.
PATIENCE_S = 200.0


class Queues:
    """The jobs and the dead ones, as sender and operator see them."""

    def __init__(self, sqs: Any) -> None:
        self._sqs = sqs
        self.dead_url = sqs.create_queue(QueueName=f"dead-{uuid4()}")["QueueUrl"]
        arn = self._attributes(self.dead_url)["QueueArn"]
        redrive = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": 3})
        attributes = {"RedrivePolicy": redrive}
        self.url = sqs.create_queue(QueueName=f"jobs-{uuid4()}", Attributes=attributes)["QueueUrl"]

    def send(self, body: str) -> None:
        self._sqs.send_message(QueueUrl=self.url, MessageBody=body)

    def left(self) -> int:
        """Messages that wait or are in work."""
        counted = self._attributes(self.url)
        names = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
        return sum(int(counted[name]) for name in names)

    def dead(self) -> dict[str, str]:
        """The dead messages: body and the type of the error."""
        found = {}
        while messages := self._sqs.receive_message(
            QueueUrl=self.dead_url, MaxNumberOfMessages=10, MessageAttributeNames=["All"]
        ).get("Messages"):
            for message in messages:
                told = message.get("MessageAttributes", {}).get("ErrorType", {})
                found[message["Body"]] = told.get("StringValue", "")
        return found

    def _attributes(self, url: str) -> Any:
        return self._sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]


@pytest.fixture
def queues(monkeypatch: pytest.MonkeyPatch) -> Iterator[Queues]:
    with moto_client(monkeypatch, "sqs") as client:
        yield Queues(client)


@contextmanager
def machine(folder: Path, name: str, queues: Queues, s3: LocalS3) -> Iterator["Machine"]:
    environ = os.environ | s3.environ | {
        "WORKER_DIR": str(folder / "worker"),
        "COMFYUI_DATA_DIR": str(folder / "data"),
        "DEAD_LETTER_QUEUE_URL": queues.dead_url,
        "SERVE_PORT": "0",
        "SERVE_CONCURRENCY": "2",
    }  # fmt: skip
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "runtime", "serve", "--queue", queues.url],
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
    """A running `serve`, and what its handlers log."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process, self._log = process, log

    def events(self) -> list[dict[str, Any]]:
        """The handlers' log lines that tell how a job moves."""
        found = []
        for line in self._log.read_text(errors="replace").splitlines():
            if line.startswith("{") and '"event"' in line:
                found.append(json.loads(line))
        return found

    def count(self, name: str) -> int:
        return sum(each["event"] == name for each in self.events())


def job(request_id: str) -> str:
    """A job that lasts long enough to be killed in."""
    workflow = workflows.image() | {"7": node("TestSleep", seconds=0.2, deaf=False)}
    return json.dumps(event(workflow, request_id=request_id))


def test_killed_machine_costs_no_job_and_no_job_is_done_twice(
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
    # It takes ComfyUI along each time, so it can only be given up for its number of tries.
    killer = json.dumps(event(workflows.one("TestKill"), request_id="killer"))
    bodies = [*jobs.values(), *list(jobs.values())[:DUPLICATES], *poison, killer]
    for body in sorted(bodies, key=hash):
        queues.send(body)

    with machine(tmp_path, "first", queues, s3) as first:
        assert wait_until(lambda: first.count("job.completed") >= JOBS // 2, PATIENCE_S)
        first.process.kill()
        first.process.wait()
        died_at = time.monotonic()
    environment = f"WORKER_DIR={tmp_path}/worker"
    assert wait_until(lambda: not processes_with(environment))
    with machine(tmp_path, "second", queues, s3) as second:
        assert wait_until(lambda: queues.left() == 0, PATIENCE_S), second.events()[-10:]

    assert time.monotonic() - died_at < PATIENCE_S
    found = Counter(key.partition("/")[0] for key in objects_in(s3) if key.endswith(".png"))
    assert {name: found[name] for name in jobs} == dict.fromkeys(jobs, 1)
    assert queues.dead() == poison | {killer: ""}
    assert not processes_with(environment)
    assert_nothing_runs_after_its_success([*first.events(), *second.events()])


def assert_nothing_runs_after_its_success(events: list[dict[str, Any]]) -> None:
    succeeded: set[str] = set()
    for each in events:
        if each["event"] == "node.started":
            assert each["request_id"] not in succeeded
        # The line that told of the end may have died with its machine: a repeat tells of it, too.
        if each["event"] in ("job.completed", "job.repeated"):
            succeeded.add(each["request_id"])
    assert len(succeeded) == JOBS
