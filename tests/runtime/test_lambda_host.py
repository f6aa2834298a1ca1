"""The host with AWS's own runtime client: results, errors, limits, and the processes afterwards."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from handler.settings import PROJECT
from runtime.lambda_host.failures import InvocationResult
from runtime.lambda_host.function import Function
from runtime.lambda_host.host import LambdaHost
from runtime.lambda_host.invocations import QueueConsumer
from runtime.lambda_host.runtime_api import MAX_RESPONSE_BYTES
from tests.processes import is_running, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(90),
]

StartHost = Callable[..., LambdaHost]


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def start_host(lines: list[str]) -> Iterator[StartHost]:
    with ExitStack() as stack:

        def start(handler: str, **options: Any) -> LambdaHost:
            name = handler if "." in handler else f"handlers.{handler}"
            function = Function(handler=f"tests.runtime.{name}", environ=os.environ, **options)
            return stack.enter_context(LambdaHost(function, on_line=lines.append))

        yield start


def body(result: InvocationResult) -> Any:
    return json.loads(result.payload)


def test_event_comes_back_with_its_context(
    start_host: StartHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_LAMBDA_MAX_CONCURRENCY", "4")
    host = start_host("echoes")

    result = host.invoke(b'{"word": "\xc3\xa9"}', timeout_s=10, request_id="request-1")

    answer = body(result)
    environ = answer.pop("environ")
    assert result.function_error is None
    assert answer["event"] == {"word": "é"}
    assert answer["request_id"] == "request-1"
    assert 0 < answer["remaining_ms"] <= 10_000
    assert answer["arn"].endswith(":function:lambda-comfyui")
    assert answer["folder"] == str(PROJECT) == environ["LAMBDA_TASK_ROOT"]
    assert environ["AWS_LAMBDA_FUNCTION_VERSION"] == "$LATEST"
    assert environ["_X_AMZN_TRACE_ID"].startswith("Root=1-")


def test_one_client_serves_event_after_event(start_host: StartHost) -> None:
    host = start_host("echoes")

    answers = [body(host.invoke(b"%d" % n, timeout_s=10)) for n in range(20)]

    assert [answer["event"] for answer in answers] == list(range(20))
    assert len({answer["request_id"] for answer in answers}) == 20
    assert len({answer["pid"] for answer in answers}) == 1


def test_events_that_come_together_are_all_answered(start_host: StartHost) -> None:
    host = start_host("echoes")
    answers: list[Any] = []

    def invoke(number: int) -> None:
        answers.append(body(host.invoke(b"%d" % number, timeout_s=10))["event"])

    threads = [threading.Thread(target=invoke, args=(n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(answers) == list(range(5))


def test_as_many_events_run_at_once_as_there_are_clients(
    start_host: StartHost, tmp_path: Path
) -> None:
    host = start_host("host_handlers.acts", concurrency=3)

    def invoke(name: str) -> None:
        # None of the first three ends before all of them have begun.
        action = {"marks": str(tmp_path), "name": name, "together": 3}
        host.invoke(json.dumps(action).encode(), timeout_s=60)

    threads = [threading.Thread(target=invoke, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(times_of(tmp_path, "end")) == 4
    assert times_of(tmp_path, "end")[0] <= times_of(tmp_path, "begin")[3]


def times_of(folder: Path, what: str) -> list[float]:
    return sorted(float(path.read_text().split()[1]) for path in folder.glob(f"*.{what}"))


def test_client_that_dies_is_replaced_while_the_others_go_on(
    start_host: StartHost, tmp_path: Path
) -> None:
    host = start_host("host_handlers.acts", concurrency=2)
    release = tmp_path / "release"
    action = {"marks": str(tmp_path), "name": "slow", "until": str(release), "do": "ok"}
    slow = json.dumps(action).encode()
    results: list[InvocationResult] = []
    running = threading.Thread(target=lambda: results.append(host.invoke(slow, timeout_s=60)))
    running.start()
    assert wait_until((tmp_path / "slow.begin").exists)

    crashes = [host.invoke(b'{"do": "die"}', timeout_s=10) for _ in range(2)]
    replaced = host.invoke(b'{"do": "ok"}', timeout_s=10)
    still_running = running.is_alive()
    release.touch()
    running.join()

    assert {crash.function_error for crash in crashes} == {"Runtime.ExitError"}
    assert still_running
    assert replaced == results[0] == InvocationResult(b'"ok"')


def test_client_that_served_and_died_is_replaced_without_an_event(
    start_host: StartHost, tmp_path: Path
) -> None:
    host = start_host("host_handlers.acts")

    host.invoke(b'{"do": "die"}', timeout_s=10)

    with host.reserved_client(30) as is_free:
        assert is_free


def test_exception_is_answered_as_on_aws(start_host: StartHost) -> None:
    result = start_host("raises").invoke(b"{}", timeout_s=10, request_id="request-2")

    answer = body(result)
    trace = "".join(answer.pop("stackTrace"))
    assert result.function_error == "ValueError"
    assert answer == {
        "errorType": "ValueError",
        "errorMessage": "no such thing",
        "requestId": "request-2",
    }
    assert "in raises" in trace


@pytest.mark.parametrize(
    ("handler", "ended"), [("exits", "exit status 3"), ("is_killed", "signal: killed")]
)
def test_crash_is_answered_at_once(start_host: StartHost, handler: str, ended: str) -> None:
    result = start_host(handler).invoke(b'"exit"', timeout_s=60, request_id="request-3")

    assert result.function_error == "Runtime.ExitError"
    assert body(result) == {
        "errorType": "Runtime.ExitError",
        "errorMessage": f"RequestId: request-3 Error: Runtime exited with error: {ended}",
    }


def test_next_event_after_a_crash_gets_a_new_client(start_host: StartHost) -> None:
    host = start_host("exits")

    crashed = host.invoke(b'"exit"', timeout_s=10)
    answered = host.invoke(b'"stay"', timeout_s=10)

    assert crashed.function_error == "Runtime.ExitError"
    assert answered == InvocationResult(b"null")


def test_client_that_dies_while_idle_costs_no_event(start_host: StartHost) -> None:
    host = start_host("echoes")
    pid = body(host.invoke(b"1", timeout_s=10))["pid"]

    killed = consumer_of(host)
    os.kill(pid, signal.SIGKILL)
    # Until the host notices its death, it counts as a free client.
    assert wait_until(lambda: consumer_of(host) is not killed)
    answer = body(host.invoke(b"2", timeout_s=10))

    assert answer["event"] == 2
    assert answer["pid"] != pid


def consumer_of(host: LambdaHost) -> QueueConsumer:
    """The only client at the queue; each client that is started is another consumer."""
    (supervisor,) = host._supervisors
    assert supervisor._environment
    (slot,) = supervisor._environment._slots
    return slot._consumer


def test_timeout_ends_the_client_and_all_it_started(start_host: StartHost, tmp_path: Path) -> None:
    host = start_host("sleeps")
    slow = json.dumps({"pids": str(tmp_path / "slow"), "seconds": 60}).encode()
    quick = json.dumps({"pids": str(tmp_path / "quick"), "seconds": 0}).encode()

    # Long enough for it to write its process ids.
    late = host.invoke(slow, timeout_s=3, request_id="request-4")
    pids = [int(pid) for pid in (tmp_path / "slow").read_text().split()]
    in_time = host.invoke(quick, timeout_s=10)

    assert late.function_error == "Sandbox.Timedout"
    assert body(late) == {
        "errorType": "Sandbox.Timedout",
        "errorMessage": "RequestId: request-4 Error: Task timed out after 3.00 seconds",
    }
    assert wait_until(lambda: not any(is_running(pid) for pid in pids))
    assert in_time.function_error is None
    assert body(in_time) not in pids


@pytest.mark.parametrize(
    ("size_bytes", "error"),
    [
        (MAX_RESPONSE_BYTES, None),
        (MAX_RESPONSE_BYTES + 1, "Function.ResponseSizeTooLarge"),
        (7_000_000, "Function.ResponseSizeTooLarge"),
    ],
)
def test_response_has_a_largest_size(
    start_host: StartHost, size_bytes: int, error: str | None
) -> None:
    quotes = 2

    result = start_host("is_too_large").invoke(b"%d" % (size_bytes - quotes), timeout_s=10)

    assert result.function_error == error


def test_event_after_one_that_was_too_large_is_answered(start_host: StartHost) -> None:
    host = start_host("is_too_large")

    host.invoke(b"7000000", timeout_s=10)

    assert host.invoke(b"3", timeout_s=10) == InvocationResult(b'"xxx"')


def test_failed_import_is_answered_with_the_error_that_the_client_reports(
    start_host: StartHost,
) -> None:
    host = start_host("handlers_that_fail_at_import.handler")

    results = [host.invoke(b"{}", timeout_s=10) for _ in range(2)]

    for result in results:
        assert result.function_error == "RuntimeError"
        assert body(result)["errorMessage"] == "not importable"
        assert "about to fail" in result.log_tail


def test_exit_at_import_shows_the_last_lines(start_host: StartHost) -> None:
    result = start_host("handlers_that_exit_at_import.handler").invoke(b"{}", timeout_s=10)

    assert result.function_error == "Runtime.ExitError"
    assert "exit status 7" in body(result)["errorMessage"]
    assert result.log_tail == ("about to exit",)


def test_init_that_never_ends_times_out(start_host: StartHost) -> None:
    host = start_host("handlers_that_hang_at_import.handler", init_timeout_s=0.1)

    result = host.invoke(b"{}", timeout_s=10)

    assert result.function_error == "Sandbox.Timedout"
    assert "Init phase" in body(result)["errorMessage"]


def test_closing_ends_the_invocations_that_run_and_leaves_no_process(
    start_host: StartHost, tmp_path: Path
) -> None:
    host = start_host("sleeps")
    pids_file = tmp_path / "pids"
    event = json.dumps({"pids": str(pids_file), "seconds": 60}).encode()
    results: list[InvocationResult] = []
    invoking = threading.Thread(target=lambda: results.append(host.invoke(event, timeout_s=60)))
    invoking.start()
    assert wait_until(pids_file.exists)

    host.__exit__(None, None, None)
    invoking.join()

    assert results[0].function_error == "Runtime.ExitError"
    pids = [int(pid) for pid in pids_file.read_text().split()]
    # The rest of a process group may end a moment after its leader.
    assert wait_until(lambda: not any(is_running(pid) for pid in pids))
    assert host.invoke(b"{}", timeout_s=10).function_error == "Runtime.Unavailable"


def test_killed_host_leaves_no_client(tmp_path: Path) -> None:
    pids_file = tmp_path / "pids"
    event = json.dumps({"pids": str(pids_file), "seconds": 60})
    program = (
        "import os; from runtime.lambda_host.host import Function, LambdaHost\n"
        "sleeps = Function(handler='tests.runtime.handlers.sleeps', environ=os.environ)\n"
        f"with LambdaHost(sleeps, on_line=print) as h: h.invoke({event.encode()!r}, timeout_s=60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=PROJECT) as host:
        try:
            assert wait_until(pids_file.exists)
        finally:
            host.kill()

    ric, started_by_handler = (int(pid) for pid in pids_file.read_text().split())
    os.kill(started_by_handler, signal.SIGKILL)  # the host does not know a handler's children
    assert wait_until(lambda: not is_running(ric))
