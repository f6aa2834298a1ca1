"""Extensions in an environment: real processes that speak the Extensions API."""

import http.client
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from runtime.lambda_host.extensions import ExtensionRefusedError, Extensions
from runtime.lambda_host.extensions_api import ExtensionsApiServer
from runtime.lambda_host.failures import WORKER_UNFIT, Failure, InvocationResult
from runtime.lambda_host.function import Function
from runtime.lambda_host.host import LambdaHost
from runtime.lambda_host.supervisor import MAX_FAILURES
from tests.processes import is_running, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(90),
]

EXTENSION = Path(__file__).with_name("host_extension.py")
StartHost = Callable[..., LambdaHost]


class Diary:
    """The file in which the extension notes what happens to it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self, word: str) -> list[str]:
        text = self.path.read_text() if self.path.exists() else ""
        lines = [line.partition(" ") for line in text.splitlines()]
        return [rest for first, _, rest in lines if first == word]


@pytest.fixture
def diary(tmp_path: Path) -> Diary:
    return Diary(tmp_path / "diary")


@pytest.fixture
def states() -> list[str]:
    return []


@pytest.fixture
def start_host(diary: Diary, states: list[str]) -> Iterator[StartHost]:
    with ExitStack() as stack:

        def start(behaviour: str, **options: Any) -> LambdaHost:
            on_give_up = options.pop("on_give_up", None)
            function = Function(
                handler="tests.runtime.host_handlers.acts",
                environ=os.environ,
                extensions=[[sys.executable, str(EXTENSION), str(diary.path), behaviour]],
                **options,
            )
            host = LambdaHost(
                function, on_line=lambda _: None, on_state=states.append, on_give_up=on_give_up
            )
            stack.enter_context(host)
            return host

        yield start


def run(host: LambdaHost, **action: Any) -> InvocationResult:
    return host.invoke(json.dumps(action).encode(), timeout_s=60)


def test_extension_registers_and_gets_the_shutdown_event(
    start_host: StartHost, diary: Diary
) -> None:
    host = start_host("is plain")
    assert run(host, do="ok").payload == b'"ok"'

    before_ms = time.time() * 1000
    host.close(20.0)
    after_ms = time.time() * 1000

    (registered,) = diary.lines("registered")
    assert registered.startswith("200 ")
    assert json.loads(registered[4:]) == {
        "functionName": "lambda-comfyui",
        "functionVersion": "$LATEST",
        "handler": "tests.runtime.host_handlers.acts",
    }
    (answer,) = diary.lines("shutdown")
    event = json.loads(answer.removeprefix("200 "))
    # The deadline is a whole number of milliseconds.
    assert before_ms + 19_999 < event.pop("deadlineMs") < after_ms + 20_001
    assert event == {"eventType": "SHUTDOWN", "shutdownReason": "spindown"}
    assert not is_running(int(diary.lines("started")[0]))


def test_no_event_is_handed_out_before_every_extension_is_ready(
    start_host: StartHost, diary: Diary, tmp_path: Path
) -> None:
    host = start_host("takes a while")

    run(host, marks=str(tmp_path), name="first")

    begun = float((tmp_path / "first.begin").read_text().split()[1])
    assert begun >= float(diary.lines("ready")[0])


def test_invoke_events_are_refused_as_on_managed_instances(
    start_host: StartHost, diary: Diary
) -> None:
    host = start_host("wants INVOKE")

    result = run(host)

    status, _, body = diary.lines("registered")[0].partition(" ")
    assert status == "403"
    assert json.loads(body)["errorType"] == "Extension.InvalidEventType"
    assert result.function_error == "Extension.Crash"


def test_callers_get_the_init_error_that_an_extension_reports(start_host: StartHost) -> None:
    assert run(start_host("reports an init error")).function_error == "Extension.NoGpu"


def test_init_times_out_when_an_extension_does_not_register(start_host: StartHost) -> None:
    host = start_host("hangs before it registers", init_timeout_s=0.5)

    assert run(host).function_error == "Sandbox.Timedout"


def test_extension_that_dies_ends_the_environment_and_a_new_one_starts(
    start_host: StartHost, diary: Diary, states: list[str], tmp_path: Path
) -> None:
    host = start_host("is plain")
    results: list[InvocationResult] = []
    running = threading.Thread(
        target=lambda: results.append(run(host, marks=str(tmp_path), name="a", seconds=60))
    )
    running.start()
    assert wait_until((tmp_path / "a.begin").exists)
    ric = int((tmp_path / "a.begin").read_text().split()[0])

    os.kill(int(diary.lines("started")[0]), signal.SIGKILL)
    running.join()
    after = run(host, do="ok")

    assert results[0].function_error == "Extension.Crash"
    assert "extension exited with signal: killed" in results[0].payload.decode()
    assert not is_running(ric)
    assert after.payload == b'"ok"'
    assert len(diary.lines("started")) == 2
    assert "environment crashed (1 in a row): Extension.Crash" in states


def test_stop_during_init_is_not_a_failure(
    start_host: StartHost, states: list[str], diary: Diary
) -> None:
    host = start_host("hangs before it registers")
    assert wait_until(lambda: bool(diary.lines("started")))

    host.close(1.0)

    assert states == []


def test_extension_that_does_not_stop_is_killed_after_the_grace(
    start_host: StartHost, diary: Diary
) -> None:
    host = start_host("ignores SIGTERM")
    run(host)

    began = time.monotonic()
    host.close(1.0)

    # By itself it would never end.
    assert time.monotonic() - began > 0.9
    assert not is_running(int(diary.lines("started")[0]))


def test_host_gives_up_after_too_many_failures_in_a_row(start_host: StartHost) -> None:
    gave_up = threading.Event()
    host = start_host("wants INVOKE", on_give_up=lambda _: gave_up.set())

    # Each event ends the pause before the next attempt.
    failures = 0
    while not gave_up.is_set() and failures < 2 * MAX_FAILURES:
        failures += run(host).function_error == "Extension.Crash"

    assert gave_up.wait(30)
    assert run(host).function_error == "Runtime.Unavailable"


def test_host_on_an_unfit_machine_starts_no_other_environment(
    start_host: StartHost, diary: Diary
) -> None:
    failures: queue.SimpleQueue[Failure] = queue.SimpleQueue()
    host = start_host("finds its machine unfit", on_give_up=failures.put)

    failure = failures.get(timeout=30)

    assert (failure.error_type, failure.message) == (WORKER_UNFIT, "the disk is full")
    assert run(host).function_error == "Runtime.Unavailable"
    assert len(diary.lines("started")) == 1


@pytest.fixture
def extensions() -> Extensions:
    return Extensions(threading.Condition(), expected=1, on_error=lambda *_: None)


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(ExtensionRefusedError) as refused:
        call()
    return refused.value.error_type


def test_each_wrong_call_has_its_own_type(extensions: Extensions) -> None:
    identifier = extensions.register("a", ["SHUTDOWN"], is_external=True)
    stranger = "00000000-0000-0000-0000-000000000000"

    refusals = {
        refusal(lambda: extensions.register("", [], is_external=True)),
        refusal(lambda: extensions.register("a", [], is_external=True)),
        refusal(lambda: extensions.register("b", ["SHUTDOWN"], is_external=False)),
        refusal(lambda: extensions.next_event(None)),
        refusal(lambda: extensions.next_event("not a uuid")),
        refusal(lambda: extensions.next_event(stranger)),
        refusal(lambda: extensions.fail(identifier, None, "", is_init=True)),
    }
    for number in range(9):
        extensions.register(f"internal {number}", [], is_external=False)
    refusals.add(refusal(lambda: extensions.register("one more", [], is_external=False)))
    extensions.close_registration()
    refusals.add(refusal(lambda: extensions.register("late", [], is_external=True)))

    assert refusals == {
        "Extension.InvalidExtensionName",
        "Extension.InvalidExtensionState",
        "Extension.InvalidEventType",
        "Extension.MissingExtensionIdentifier",
        "Extension.InvalidExtensionIdentifier",
        "Extension.UnknownExtensionIdentifier",
        "Extension.MissingHeader",
        "Extension.TooManyExtensions",
        "Extension.RegistrationClosed",
    }


def test_body_that_is_not_a_registration_is_refused() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    function = Function(handler="a.b", environ={})
    registry = Extensions(threading.Condition(), expected=1, on_error=lambda *_: None)
    with ExtensionsApiServer(listener, registry, function):
        connection = http.client.HTTPConnection(*listener.getsockname())
        connection.request(
            "POST", "/2020-01-01/extension/register", "[1", {"Lambda-Extension-Name": "a"}
        )
        answer = connection.getresponse()
        body = json.loads(answer.read())
        connection.close()

    assert (answer.status, body["errorType"]) == (403, "InvalidRequestFormat")
