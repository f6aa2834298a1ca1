"""The invoke endpoint as its callers see it: boto3's own Lambda client."""

import base64
import http.client
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import ClientError

from runtime.lambda_host.async_invocations import AsyncInvocations, AsyncRules
from runtime.lambda_host.destination import FailedEvent
from runtime.lambda_host.event_store import EventStore
from runtime.lambda_host.function import Function
from runtime.lambda_host.host import LambdaHost
from runtime.lambda_host.invoke_api import MAX_REQUEST_BYTES, InvokeApi
from tests.aws import lambda_client
from tests.processes import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(90),
]

NAME = "lambda-comfyui"
Start = Callable[..., Any]


@pytest.fixture
def failed() -> list[FailedEvent]:
    return []


@pytest.fixture
def hosts() -> list[LambdaHost]:
    """The hosts that `start` has started."""
    return []


@pytest.fixture
def start(failed: list[FailedEvent], hosts: list[LambdaHost], tmp_path: Path) -> Iterator[Start]:
    """Starts an endpoint and returns a boto3 client for it."""
    with ExitStack() as stack:

        def start(*, limit: int = 10, timeout_s: float = 10, **rules: Any) -> Any:
            function = Function(handler="tests.runtime.host_handlers.acts", environ=os.environ)
            host = stack.enter_context(LambdaHost(function, on_line=lambda _: None))
            hosts.append(host)
            rules = {"first_retry_after_s": 0.1, **rules}
            store = EventStore(tmp_path)
            stack.callback(store.close)
            events = AsyncInvocations(
                host, store, AsyncRules(**rules), timeout_s=timeout_s, on_failure=failed.append
            )
            events.start()
            stack.callback(events.close, 30)
            stack.callback(host.close, 1)
            listener = socket.create_server(("127.0.0.1", 0))
            api = InvokeApi(listener, host, events, timeout_s=timeout_s, limit=limit)
            stack.enter_context(api)
            client = lambda_client(listener.getsockname()[1])
            stack.callback(client.close)
            return client

        yield start


def invoke(client: Any, name: str = NAME, **options: Any) -> Any:
    if isinstance(options.get("Payload"), dict):
        options["Payload"] = json.dumps(options["Payload"])
    return client.invoke(FunctionName=name, **options)


def refusal(client: Any, **options: Any) -> tuple[str, int]:
    with pytest.raises(ClientError) as refused:
        invoke(client, **options)
    response: Any = refused.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]


def in_background(call: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=call)
    thread.start()
    return thread


@pytest.mark.parametrize(
    "name",
    [
        NAME,
        "function",
        f"{NAME}:live",
        f"012345678912:function:{NAME}",
        f"arn:aws:lambda:us-east-1:012345678912:function:{NAME}",
    ],
)
def test_result_comes_back(start: Start, name: str) -> None:
    answer = invoke(start(), name, Payload={"do": "é"})

    assert answer["StatusCode"] == 200
    assert answer["ExecutedVersion"] == "$LATEST"
    assert json.load(answer["Payload"]) == "é"
    assert "FunctionError" not in answer
    assert len(answer["ResponseMetadata"]["RequestId"]) == 36


def test_call_without_payload_is_an_empty_event(start: Start) -> None:
    assert invoke(start())["Payload"].read() == b"null"


@pytest.mark.parametrize(
    ("do", "error_type"),
    [
        ("raise", "ValueError"),
        ("die", "Runtime.ExitError"),
        ("be large", "Function.ResponseSizeTooLarge"),
    ],
)
def test_function_error_is_answered_as_on_aws(start: Start, do: str, error_type: str) -> None:
    answer = invoke(start(), Payload={"do": do})

    assert answer["StatusCode"] == 200
    assert answer["FunctionError"] == "Unhandled"
    assert json.load(answer["Payload"])["errorType"] == error_type


def test_timeout_is_a_function_error(start: Start) -> None:
    answer = invoke(start(timeout_s=0.4), Payload={"seconds": 60})

    assert answer["FunctionError"] == "Unhandled"
    assert "Task timed out after 0.40 seconds" in json.load(answer["Payload"])["errorMessage"]


def test_log_tail_has_the_lines_of_this_invocation(start: Start) -> None:
    client = start()
    invoke(client, Payload={"do": "talk", "name": "another"})

    answer = invoke(client, Payload={"do": "talk", "name": "me"}, LogType="Tail")

    assert base64.b64decode(answer["LogResult"]).decode() == "said by me"


def test_client_context_reaches_the_handler(start: Start) -> None:
    context = base64.b64encode(json.dumps({"custom": {"user": "é"}}).encode()).decode()

    answer = invoke(start(), Payload={"do": "tell context"}, ClientContext=context)

    assert json.load(answer["Payload"]) == {"client": {"user": "é"}, "arn": NAME}


def test_dry_run_runs_nothing(start: Start, tmp_path: Path) -> None:
    client = start()

    answer = invoke(
        client, InvocationType="DryRun", Payload={"marks": str(tmp_path), "name": "dry"}
    )
    invoke(client, Payload={"marks": str(tmp_path), "name": "wet"})

    assert answer["StatusCode"] == 204
    assert sorted(path.name for path in tmp_path.glob("*wet*")) == ["wet.begin", "wet.end"]


def test_refusal_has_the_error_name_of_aws(start: Start) -> None:
    client = start()
    too_large = b'"%s"' % (b"x" * (MAX_REQUEST_BYTES - 1))
    too_large_event = b'"%s"' % (b"x" * 1024 * 1024)

    refusals = [
        refusal(client, Payload=b"{bad"),
        refusal(client, Payload=too_large),
        refusal(client, Payload=too_large_event, InvocationType="Event"),
        refusal(client, name="another"),
        refusal(client, InvocationType="Later"),
        refusal(client, ClientContext="no base64"),
    ]

    assert refusals == [
        ("InvalidRequestContentException", 400),
        ("RequestTooLargeException", 413),
        ("RequestTooLargeException", 413),
        ("ResourceNotFoundException", 404),
        ("InvalidParameterValueException", 400),
        ("InvalidRequestContentException", 400),
    ]
    largest = b'"%s"' % (b"x" * (MAX_REQUEST_BYTES - 2))
    # The handler gets it, and raises.
    assert invoke(client, Payload=largest)["FunctionError"] == "Unhandled"


@pytest.mark.parametrize("kind", ["RequestResponse", "Event"])
@pytest.mark.parametrize(
    "payload",
    [b'{"a": NaN}', b"[Infinity]", b"-Infinity", '{"a": "é"}'.encode("utf-16"),
     '{"a": 1}'.encode("utf-16-le"), "{}".encode("utf-32"), '{"a": "é"}'.encode("latin-1")],
)  # fmt: skip
def test_payload_that_is_no_json_in_utf_8_is_refused(
    start: Start, payload: bytes, kind: str
) -> None:
    assert refusal(start(), Payload=payload, InvocationType=kind) == (
        "InvalidRequestContentException",
        400,
    )


def test_client_context_that_is_no_json_is_refused(start: Start) -> None:
    context = base64.b64encode(b'{"custom": NaN}').decode()

    assert refusal(start(), ClientContext=context)[1] == 400


def test_body_of_unknown_length_is_refused(start: Start) -> None:
    address = urlsplit(start().meta.endpoint_url).netloc
    connection = http.client.HTTPConnection(address, timeout=30)
    path = f"/2015-03-31/functions/{NAME}/invocations"
    connection.request("POST", path, iter([b"{}"]), {"Transfer-Encoding": "chunked"})

    answer = connection.getresponse()
    answer.read()
    connection.close()

    assert answer.status == 400


def test_call_for_a_client_that_still_starts_does_not_count_as_waiting(
    start: Start, hosts: list[LambdaHost], tmp_path: Path
) -> None:
    client = start(limit=1, timeout_s=60)
    release = tmp_path / "release"
    answers: list[Any] = []

    def call(name: str) -> None:
        action = {"marks": str(tmp_path), "name": name, "until": str(release), "do": name}
        answers.append(json.load(invoke(client, Payload=action)["Payload"]))

    # The client starts meanwhile: it is free until the first call is running.
    first, second = in_background(lambda: call("first")), in_background(lambda: call("second"))
    assert wait_until(lambda: len(hosts[0]._queue._waiting) + hosts[0]._queue._running() == 2)
    refused = refusal(client, Payload={})
    release.touch()
    first.join()
    second.join()

    assert refused == ("TooManyRequestsException", 429)
    assert sorted(answers) == ["first", "second"]


def test_calls_wait_up_to_the_limit_and_the_next_one_is_refused(
    start: Start, hosts: list[LambdaHost], tmp_path: Path
) -> None:
    client = start(limit=1, timeout_s=60)
    release = tmp_path / "release"
    answers: list[Any] = []

    def call(name: str) -> None:
        action = {"marks": str(tmp_path), "name": name, "until": str(release), "do": name}
        answers.append(json.load(invoke(client, Payload=action)["Payload"]))

    first = in_background(lambda: call("first"))
    assert wait_until((tmp_path / "first.begin").exists)
    second = in_background(lambda: call("second"))
    # Nothing shows from outside that a call waits.
    assert wait_until(lambda: len(hosts[0]._queue._waiting) == 1)
    refused = refusal(client, Payload={})
    has_second_begun = (tmp_path / "second.begin").exists()
    release.touch()
    first.join()
    second.join()

    assert refused == ("TooManyRequestsException", 429)
    assert not has_second_begun
    assert sorted(answers) == ["first", "second"]


def test_event_is_accepted_at_once_and_run_later(
    start: Start, failed: list[FailedEvent], tmp_path: Path
) -> None:
    release = tmp_path / "release"
    action = {"marks": str(tmp_path), "name": "later", "until": str(release)}

    answer = invoke(start(), InvocationType="Event", Payload=action)

    assert answer["StatusCode"] == 202
    assert answer["Payload"].read() == b""
    assert not (tmp_path / "later.end").exists()
    release.touch()
    assert wait_until((tmp_path / "later.end").exists)
    assert failed == []


def test_event_that_fails_is_tried_three_times(
    start: Start, failed: list[FailedEvent], tmp_path: Path
) -> None:
    action = {"marks": str(tmp_path), "name": "bad", "do": "raise"}

    answer = invoke(start(), InvocationType="Event", Payload=action)

    assert wait_until(lambda: bool(failed))
    tries = [float(line.split()[1]) for line in (tmp_path / "bad.begin").read_text().splitlines()]
    assert len(tries) == 3
    # The second pause is the double of the first.
    assert tries[1] - tries[0] > 0.09
    assert tries[2] - tries[1] > 0.19
    record = failed[0].record()
    assert record["requestContext"] == {
        "requestId": answer["ResponseMetadata"]["RequestId"],
        "functionArn": f"arn:aws:lambda:us-east-1:012345678912:function:{NAME}:$LATEST",
        "condition": "RetriesExhausted",
        "approximateInvokeCount": 3,
    }
    assert record["requestPayload"] == action
    assert record["responseContext"]["functionError"] == "Unhandled"
    assert record["responsePayload"]["errorMessage"] == "told to"


def test_event_that_is_too_old_is_not_tried_again(start: Start, failed: list[FailedEvent]) -> None:
    client = start(max_age_s=0.05)

    invoke(client, InvocationType="Event", Payload={"do": "raise"})

    assert wait_until(lambda: bool(failed))
    assert failed[0].condition == "EventAgeExceeded"


def test_event_over_the_limit_is_refused_and_a_stop_loses_none_of_the_others(
    failed: list[FailedEvent], tmp_path: Path
) -> None:
    function = Function(handler="tests.runtime.host_handlers.acts", environ=os.environ)
    rules = AsyncRules(limit=2)
    store = EventStore(tmp_path)
    with closing(store), LambdaHost(function, on_line=lambda _: None) as host:
        events = AsyncInvocations(host, store, rules, timeout_s=10, on_failure=failed.append)
        events.start()
        running = json.dumps({"marks": str(tmp_path), "name": "a", "seconds": 60}).encode()
        accepted = [events.accept(running, "1")]
        assert wait_until((tmp_path / "a.begin").exists)
        accepted += [events.accept(b"{}", "2"), events.accept(b"{}", "3")]
        # One that is stored already needs no place.
        accepted.append(events.accept(b"{}", "2"))

        events.stop()
        host.close(0.1)
        assert events.close(30)
        positions = [store.position(number) for number in "123"]

    assert accepted == [True, True, False, True]
    assert failed == []
    assert positions == [0, 1, None]


@pytest.mark.parametrize(("may_overtake", "order"), [(8, "aabb"), (0, "abab")])
def test_accepted_events_whose_models_are_loaded_go_first(
    failed: list[FailedEvent], tmp_path: Path, may_overtake: int, order: str
) -> None:
    function = Function(handler="tests.runtime.host_handlers.acts", environ=os.environ)
    rules = AsyncRules(may_overtake=may_overtake)
    store = EventStore(tmp_path)
    with closing(store), LambdaHost(function, on_line=lambda _: None) as host:
        events = AsyncInvocations(host, store, rules, timeout_s=30, on_failure=failed.append)

        def accept(name: str, **action: object) -> None:
            given = {"marks": str(tmp_path), "name": name, **action}
            events.accept(json.dumps(given).encode(), name)

        accept("first", until=str(tmp_path / "all are accepted"))
        events.start()
        assert wait_until((tmp_path / "first.begin").exists)
        for number, letter in enumerate("abab"):
            accept(f"{letter}{number}", models=[f"{letter}.safetensors"])
        (tmp_path / "all are accepted").touch()
        assert wait_until(lambda: store.count() == 0)
        events.stop()
        host.close(0.1)
        assert events.close(30)

    begins = {path: path.read_text().split()[1] for path in tmp_path.glob("[ab]?.begin")}
    assert "".join(path.name[0] for path in sorted(begins, key=begins.__getitem__)) == order
    assert failed == []
