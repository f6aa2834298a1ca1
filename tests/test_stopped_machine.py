"""A machine is stopped while a job of its queue runs, and the next machine runs the job at once.

The hosts, their runtime clients, the handler and ComfyUI are real; SQS is moto's server.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from runtime.lambda_host.function import HANDLER, Function
from runtime.lambda_host.host import LambdaHost
from runtime.lambda_host.sqs_poller import PollerRules, SqsPoller
from runtime.lambda_host.sqs_queue import SqsQueue
from tests.aws import moto_client
from tests.processes import wait_until
from tests.workflows import event, one

pytestmark = [
    pytest.mark.usefixtures("comfyui"),
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture
def sqs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with moto_client(monkeypatch, "sqs") as client:
        yield client


@contextmanager
def machine(url: str) -> Iterator[list[str]]:
    """A host that polls the queue, as `serve` does; the events that its handler logs."""
    events: list[str] = []

    def note(line: str) -> None:
        if line.startswith("{"):
            events.append(json.loads(line).get("event", ""))

    function = Function(handler=HANDLER, environ=os.environ)
    queue = SqsQueue(url, connections=2)
    with LambdaHost(function, on_line=note) as host:
        poller = SqsPoller(
            host, queue, PollerRules(), concurrency=1, timeout_s=60, on_state=lambda _: None
        )
        poller.start()
        yield events
        poller.stop()
        host.drain(0)
    assert poller.join(30)
    queue.close()


def test_next_machine_runs_the_job_of_a_stopped_one_at_its_next_delivery(
    sqs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOBS_DB", str(tmp_path / "jobs.sqlite"))
    monkeypatch.setattr("runtime.lambda_host.sqs_queue.LONG_POLL_S", 1)
    url = sqs.create_queue(QueueName="jobs")["QueueUrl"]
    sqs.send_message(
        QueueUrl=url, MessageBody=json.dumps(event(one("TestSleep", seconds=3.0, deaf=False)))
    )

    with machine(url) as first:
        assert wait_until(lambda: "job.queued" in first, 60)
    with machine(url) as second:
        assert wait_until(lambda: "job.completed" in second, 60)

    assert "job.completed" not in first
    # It met no claim of the first machine.
    assert "job.postponed" not in second
