"""The host when the machine refuses a process, and when the output of a dead client stays open."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from runtime.lambda_host import runtime_client
from runtime.lambda_host.environment import ExecutionEnvironment
from runtime.lambda_host.failures import InvocationResult
from runtime.lambda_host.function import Function
from runtime.lambda_host.host import LambdaHost
from runtime.process import child
from runtime.process.child import Child
from tests.processes import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(90),
]


@pytest.fixture
def start_host() -> Iterator[Callable[[str], LambdaHost]]:
    with ExitStack() as stack:

        def start(handler: str) -> LambdaHost:
            function = Function(handler=f"tests.runtime.handlers.{handler}", environ=os.environ)
            return stack.enter_context(LambdaHost(function, on_line=lambda _: None))

        yield start


def test_client_that_cannot_be_started_now_is_started_later(
    start_host: Callable[[str], LambdaHost], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def start_child(*args: Any, **options: Any) -> Child:
        tries.append(1)
        if len(tries) == 2:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return Child(*args, **options)

    monkeypatch.setattr(runtime_client, "Child", start_child)
    host = start_host("exits")
    host.invoke(b'"exit"', timeout_s=10)

    # An event fails for that reason, or the next client runs it.
    answers = [host.invoke(b'"stay"', timeout_s=10) for _ in range(2)]

    assert answers[-1] == InvocationResult(b"null")
    assert len(tries) >= 3


def test_environment_that_cannot_be_started_now_is_started_later(
    start_host: Callable[[str], LambdaHost], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []
    init = ExecutionEnvironment._init

    def refuse_once(environment: ExecutionEnvironment, *args: Any) -> bool:
        tries.append(1)
        if len(tries) == 1:
            raise RuntimeError("can't start new thread")
        return init(environment, *args)

    monkeypatch.setattr(ExecutionEnvironment, "_init", refuse_once)

    host = start_host("exits")
    answers = [host.invoke(b'"stay"', timeout_s=10) for _ in range(2)]

    assert answers[-1] == InvocationResult(b"null")


def test_dead_client_gets_no_event_while_its_output_is_still_open(
    start_host: Callable[[str], LambdaHost], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "_DRAIN_WITHIN_S", 3.0)
    host = start_host("leaves")
    pid = json.loads(host.invoke(b"1", timeout_s=10).payload)
    (supervisor,) = host._supervisors
    assert supervisor._environment
    (slot,) = supervisor._environment._slots
    client, consumer = slot._client, slot._consumer
    assert client

    os.kill(pid, signal.SIGKILL)

    assert wait_until(lambda: consumer.is_retired)
    is_output_open = client.wait(0) is None
    assert is_output_open
    assert json.loads(host.invoke(b"2", timeout_s=10).payload) != pid
