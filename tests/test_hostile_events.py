"""Hostile events: each gets the documented response, and ComfyUI serves the next one.

A test marked as expected to fail shows a known defect; the mark goes when the defect does.
"""

import copy
import io
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from events.contract import response_problems
from handler import app
from handler.log import logger
from handler.settings import Settings
from handler.worker_protocol import Restart
from tests import workflows
from tests.conftest import Context, current_client, run, worker_status
from tests.events.samples import sample
from tests.workflows import event, image, node, one

pytestmark = pytest.mark.usefixtures("comfyui")

CANARY = "canary-4711"
HALF_A_PAIR = "\ud83d"
_KEYS = {"access_key_id": "a", "secret_access_key": "b", "bucket_name": "b", "region": "us-east-1"}

few_examples = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow], database=None
)
# No digits and no large numbers: sixteen thousand pixels a side are valid, but take 3 GB.
texts = st.text(st.characters(exclude_categories=("Cs", "Nd", "No", "Nl")), max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-64, 64) | st.floats(-64, 64) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def answer(request: Any, *, seconds: float = 20.0) -> dict[str, Any]:
    """The response, held to everything that every response must be."""
    response = app.lambda_handler(request, Context(seconds))
    assert response_problems(response) == []
    json.dumps(response, allow_nan=False, ensure_ascii=False).encode()
    output = response["message"] + json.dumps(response.get("error", ""))
    assert "Traceback" not in output
    assert response.get("error", {}).get("type") != "InternalError"
    return response


def refused(request: Any, type_: str = "InvalidRequest") -> str:
    """Hold that the event was refused for good, and return why."""
    response = answer(request)
    assert response["status"] == "failed"
    assert response["error"]["type"] == type_
    assert response["error"]["retryable"] is False
    message: str = response["message"]
    return message


def works() -> bool:
    return bool(run(image())["status"] == "completed")


def deep_workflow(depth: int) -> workflows.Workflow:
    nested: Any = "end"
    for _ in range(depth):
        nested = [nested]
    workflow = image()
    workflow["2"]["inputs"]["other"] = nested
    return workflow


@contextmanager
def own_connections() -> Iterator[None]:
    """A handler with connections of its own, so that what happens to them ends with the test."""
    others = dict(app._connections)
    app._connections.clear()
    try:
        yield
    finally:
        for connections in app._connections.values():
            connections.close()
        app._connections.clear()
        app._connections.update(others)


@pytest.fixture
def log() -> Iterator[Callable[[], str]]:
    """What the handler logs during the test."""
    stream = io.StringIO()
    (handler,) = logger.handlers
    assert isinstance(handler, logging.StreamHandler)
    before = handler.setStream(stream)
    yield stream.getvalue
    handler.setStream(before)


@contextmanager
def silent_server() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@few_examples
@given(json_values)
def test_any_json_is_refused_with_the_envelope(value: Any) -> None:
    refused(value)


@few_examples
@given(st.sampled_from(["request_id", "s3", "webhook", "return_outputs_as_base64"]), json_values)
def test_any_json_in_a_field_of_the_request_is_answered(name: str, value: Any) -> None:
    answer(event(image(colour=1), **{name: value}))


@few_examples
@given(
    st.sampled_from(
        [("1",), ("1", "inputs"), ("1", "inputs", "color"), ("1", "inputs", "batch_size"),
         ("2", "_meta"), ("2", "class_type"), ("2", "inputs", "images"), ("2", "inputs", "other"),
         ("2", "inputs", "filename_prefix"), ("2", "is_changed"), ("3",)]
    ),
    json_values,
)  # fmt: skip
def test_any_json_in_the_workflow_is_answered(path: tuple[str, ...], value: Any) -> None:
    workflow = image(colour=1)
    place: Any = workflow
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value

    answer(event(workflow))


@few_examples
@given(st.lists(st.fixed_dictionaries({"body": json_values | texts}), min_size=1, max_size=3))
def test_any_batch_of_bad_bodies_is_taken_from_the_queue(bodies: list[dict[str, Any]]) -> None:
    records = [
        {"messageId": str(n), "eventSource": "aws:sqs", "eventSourceARN": "arn:q", **body}
        for n, body in enumerate(bodies)
    ]

    assert app.lambda_handler({"Records": records}, None) == {"batchItemFailures": []}


@pytest.mark.parametrize(
    ("other", "key"),
    [
        ({"Records": [{"EventSource": "aws:sns", "Sns": {"Message": CANARY}}]}, "Records"),
        ({"Records": [{"eventSource": "aws:s3", "s3": {"x": CANARY}}]}, "Records"),
        ({"Records": []}, "Records"),
        ({"Records": [{"eventSource": "aws:kinesis", "kinesis": {"data": CANARY}}]}, "Records"),
        ({"Records": [{"eventSource": "aws:dynamodb", "dynamodb": {"Keys": CANARY}}]}, "Records"),
        ({"Records": [sample("sqs_message")["Records"][0], {"eventSource": CANARY}]}, "Records"),
        ({"awslogs": {"data": CANARY}}, "the keys awslogs"),
        ({"invocationId": CANARY, "records": [{"data": CANARY}]}, "invocationId, records"),
        ({"version": "2.0", "routeKey": "POST /", "body": CANARY}, "version, routeKey, body"),
        ({"source": "aws.events", "detail-type": "x", "detail": {"x": CANARY}}, "detail-type"),
        ({"payload": {"payload": event({"1": CANARY})}, "auth_data": CANARY}, "payload"),
        ({"payload": json.dumps(event({})), "session_id": CANARY}, "payload"),
    ],
)
def test_events_of_other_sources_are_refused_by_key_never_by_value(
    other: dict[str, Any], key: str
) -> None:
    message = refused(other)

    assert key in message
    assert "workflow_json" in message
    assert CANARY not in message


@pytest.mark.parametrize(
    "request_id",
    ["../..", "../../x", "/etc/x", "\0", "a\r\nX: y", "\x1b[2J", "%2e%2e", "y" * 200, "é" * 200],
)
def test_odd_request_id_comes_back_and_stays_inside_the_output_folder(request_id: str) -> None:
    response = answer(event(image(), request_id=request_id))

    assert response["id"] == request_id
    place = Path(response["output"][0]["local_path"])
    output = Settings.from_env(os.environ).comfyui_data / "output"
    assert place.is_file()
    assert place.resolve().parent.parent == output.resolve()


@pytest.mark.parametrize(
    "node_id", ["", " ", "../../x", "\0", "\n", "é" * 300, "__proto__", "execution_details", "#1"]
)
def test_odd_node_id_is_kept(node_id: str) -> None:
    workflow = {"source": node("PrimitiveString", value="hello")}
    workflow[node_id] = node("PreviewAny", source=["source", 0])

    (item,) = answer(event(workflow))["output"]

    assert item["node_id"] == node_id
    assert Path(item["local_path"]).read_text() == item["text"] == "hello"


@pytest.mark.parametrize(
    "prefix",
    ["a" * 240, "a//b", "./x", "x/", "..", " ", "é☃", "a\nb", "-rf", "a?b#c%20&e", "C:\\x"],
)
def test_odd_filename_prefix_gives_its_file(prefix: str) -> None:
    (item,) = answer(event(image(prefix)))["output"]

    assert Path(item["local_path"]).is_file()


@pytest.mark.parametrize("prefix", ["../x", "/abs/x", "a/../../x", "x" * 300, "a\0b"])
def test_impossible_filename_prefix_fails_at_its_node(prefix: str) -> None:
    assert "node 2 (SaveImage) failed" in refused(event(image(prefix)), "ExecutionFailed")


@pytest.mark.parametrize(
    "link",
    [["1", 1], ["1", -2], ["1", "0"], ["1", True], ["1", 0.5], ["1", 10**30], ["1", None], [1, 0],
     [["1"], 0], ["1"], [], ["1", 0, 0], ["9", 0], ["2", 0], [None, 0], [{}, 0]],
)  # fmt: skip
def test_wrong_link_is_refused_by_node(link: list[Any]) -> None:
    workflow = image()
    workflow["2"]["inputs"]["images"] = link

    message = refused(event(workflow), "WorkflowRejected")

    assert "node 2" in message or "nodes 2" in message


@pytest.mark.parametrize("class_type", ["SaveImage ", "saveimage", "\0", "../x", "a'#2'b", "%s{}"])
def test_odd_class_is_refused_by_name(class_type: str) -> None:
    message = refused(event(one(class_type)), "WorkflowRejected")

    assert f"node 7: its class '{class_type}' is not installed" in message


def test_no_secret_reaches_response_or_log(log: Callable[[], str]) -> None:
    target = {
        "access_key_id": CANARY,
        "secret_access_key": CANARY,
        "endpoint_url": f"http://user:{CANARY}@[",
        "bucket_name": "b",
    }
    hook = {"url": f"http://[/{CANARY}", "secret": CANARY}
    request = {"payload": event(image(), s3=target, webhook=hook), "auth_data": CANARY}

    response = answer(request)

    assert response["error"]["type"] == "InvalidRequest"
    assert CANARY not in json.dumps(response) + log()
    assert "webhook.failed" in log()


@pytest.mark.parametrize(
    ("field", "value"),
    [("bucket_name", "a/b"),
     ("region", "us east"),
     ("endpoint_url", "http://a b")],
)  # fmt: skip
def test_unusable_s3_field_is_named(field: str, value: str) -> None:
    target = {"access_key_id": "a", "secret_access_key": "b", "bucket_name": "b"}

    message = refused(event(image(), s3={**target, field: value}))

    assert f"s3.{field}" in message


def test_twenty_jobs_in_a_row_all_complete_with_their_own_file() -> None:
    responses = [answer(event(image())) for _ in range(20)]

    assert {response["status"] for response in responses} == {"completed"}
    assert len({response["output"][0]["filename"] for response in responses}) == 20


@pytest.mark.parametrize(
    "extra", [{"is_changed": ["x"]}, {"is_changed": None}, {"mode": 4}, {"_meta": {"title": None}}]
)
def test_unknown_keys_of_a_node_do_no_harm(extra: dict[str, Any]) -> None:
    workflow = image()
    workflow["2"] |= extra

    assert answer(event(workflow))["status"] == "completed"


def test_numbers_as_strings_are_accepted_as_by_comfyui() -> None:
    workflow = image()
    workflow["1"]["inputs"] |= {"width": "32", "batch_size": "2"}

    assert len(answer(event(workflow))["output"]) == 2


@pytest.mark.parametrize("place", ["request_id", "class_type", "text", "prefix", "node id"])
def test_half_of_a_surrogate_pair_is_refused(place: str) -> None:
    requests_ = {
        "request_id": event(image(), request_id=HALF_A_PAIR),
        "class_type": event(one(HALF_A_PAIR)),
        "text": event(workflows.text(HALF_A_PAIR)),
        "prefix": event(image(HALF_A_PAIR)),
        "node id": event({HALF_A_PAIR: node("EmptyImage")}),
    }

    refused(requests_[place])


def test_not_a_number_in_a_workflow_does_not_pass_for_a_dead_comfyui() -> None:
    workflow = {
        "1": node("PrimitiveFloat", value="nan"),
        "2": node("PreviewAny", source=["1", 0]),
    }

    assert answer(event(workflow)).get("error", {}).get("type") != "WorkerUnavailable"


def test_infinite_input_is_refused_by_node_and_input() -> None:
    workflow = image()
    workflow["3"] = node("ImageScaleBy", image=["1", 0], upscale_method="area", scale_by="inf")
    workflow["2"]["inputs"]["images"] = ["3", 0]

    assert "node 3 (ImageScaleBy), input 'scale_by'" in refused(event(workflow), "WorkflowRejected")


@pytest.mark.parametrize("depth", [600, 900])
def test_deeply_nested_input_is_refused_as_such(depth: int) -> None:
    with own_connections():
        assert "levels of nesting" in refused(event(deep_workflow(depth)))


def test_job_that_fails_while_the_worker_wakes_does_not_mix_up_the_next_one() -> None:
    with own_connections():
        assert works()
        app.lambda_handler(event(deep_workflow(600)), None)
        worker_status(Restart)

        assert works()


def test_deeply_nested_message_is_taken_from_the_queue() -> None:
    record = {"messageId": "1", "eventSource": "aws:sqs", "body": "[" * 100_000}

    assert app.lambda_handler({"Records": [record]}, None) == {"batchItemFailures": []}


def test_batch_with_an_odd_queue_arn_is_answered() -> None:
    body = json.dumps(event({}))
    record = {"messageId": "1", "eventSource": "aws:sqs", "body": body, "eventSourceARN": 5}

    assert app.lambda_handler({"Records": [record]}, None) == {"batchItemFailures": []}


def test_response_is_never_larger_than_lambda_takes() -> None:
    response = answer(event(workflows.text("y" * 3_000_000)))

    assert len(json.dumps(response)) <= 6 * 1024 * 1024


@pytest.mark.parametrize(
    "workflow", [one("X" * 100_000), one("TestRaise", message="boom " * 100_000)]
)
def test_message_stays_a_sentence(workflow: dict[str, Any]) -> None:
    assert len(answer(event(workflow))["message"]) < 3000


def test_cached_output_whose_file_was_deleted_is_made_again() -> None:
    workflow = image()
    first = answer(event(copy.deepcopy(workflow)))
    output = Settings.from_env(os.environ).comfyui_data / "output"
    (output / first["output"][0]["filename"]).unlink()

    again = answer(event(workflow))

    assert "error" not in again
    assert Path(again["output"][0]["local_path"]).is_file()


def test_request_id_that_is_a_subfolder_leaves_the_files_in_it_alone() -> None:
    (item,) = answer(event(image("shared/pic")))["output"]
    original = Settings.from_env(os.environ).comfyui_data / "output" / "shared" / item["filename"]
    before = original.read_bytes()

    answer(event(image("pic"), request_id="shared"))

    assert original.read_bytes() == before


def test_request_id_that_is_the_name_of_an_output_file_still_gets_its_files() -> None:
    taken = answer(event(image()))["output"][0]["filename"]

    response = answer(event(image(), request_id=taken))

    assert "error" not in response


def test_values_of_nodes_with_long_ids_do_not_overwrite_each_other() -> None:
    workflow = {}
    for n in "12":
        workflow[f"source{n}"] = node("PrimitiveString", value=f"text {n}")
        workflow["n" * 250 + n] = node("PreviewAny", source=[f"source{n}", 0])

    items = answer(event(workflow))["output"]

    assert [Path(item["local_path"]).read_text() for item in items] == [i["text"] for i in items]


def test_dangling_link_that_no_output_needs_does_not_matter() -> None:
    workflow = image()
    workflow["3"] = node("ImageInvert", image=["99", 0])

    assert answer(event(workflow))["status"] == "completed"


def test_storage_that_hangs_does_not_cost_more_than_the_invocation_has() -> None:
    # A start of ComfyUI would take the time that is for the storage.
    assert works()
    with silent_server() as url:
        workflow = image()
        # More files than are uploaded at a time: some have not begun when the time is over.
        workflow["1"]["inputs"]["batch_size"] = 6
        response = answer(event(workflow, s3={**_KEYS, "endpoint_url": url}), seconds=3.0)

    assert len(response["output"]) == 6
    # The S3 client itself would report a timeout, after half a minute.
    reasons = {item["upload_error"] for item in response["output"]}
    assert reasons == {"the upload had not finished when the job ended"}


def test_storage_that_hangs_does_not_delay_the_next_request() -> None:
    with silent_server() as url:
        workflow = image()
        workflow["1"]["inputs"]["batch_size"] = 4
        answer(event(workflow, s3={**_KEYS, "endpoint_url": url}), seconds=0.3)

        message = refused(event(image(), s3={**_KEYS, "bucket_name": "a/b"}))

    assert "s3.bucket_name" in message


def test_comfyui_whose_worker_thread_died_is_replaced() -> None:
    assert works()
    pid = worker_status().comfyui_pid
    prompt = deep_workflow(600)
    # ComfyUI copies what it queues, in the thread that runs prompts, and that thread ends of it.
    requests.post(current_client().base_url + "/prompt", json={"prompt": prompt}, timeout=30)
    try:
        assert works()
        assert worker_status().comfyui_pid != pid
    finally:
        worker_status(Restart)
