"""The request schema, and the sentences that say what is wrong with an event."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from events.contract import as_request, caller_of, parse_request, schema
from events.errors import InvalidRequest
from events.job import Job
from handler.settings import PROJECT
from tests.workflows import event, image, node

SECRET = "canary-4711"


def parse(request: Any) -> Job:
    return parse_request(request, caller_of(request))


def refusal(request: Any) -> str:
    with pytest.raises(InvalidRequest) as refused:
        parse(request)
    return refused.value.message


@pytest.fixture
def reference() -> dict[str, Any]:
    sample = PROJECT / "events" / "samples" / "direct_wan22_t2v.json"
    loaded: dict[str, Any] = json.loads(sample.read_text())
    return loaded


@pytest.mark.parametrize("name", ["request", "response", "webhook", "template"])
def test_published_schemas_are_valid_json_schema(name: str) -> None:
    Draft202012Validator.check_schema(schema(name))


def test_documented_request_is_accepted_unchanged(reference: dict[str, Any]) -> None:
    job = parse(reference)

    assert len(job.workflow) == 14
    assert job.caller.extra_params == {"user_id": "12345", "project_id": "abc-def"}
    assert len(job.id) == 36


def test_empty_strings_and_nulls_mean_not_given() -> None:
    empty = event(
        image(),
        request_id=None,
        s3={"bucket_name": "", "endpoint_url": "", "region": None},
        webhook={"url": "", "secret": None, "timeout": None, "extra_params": None},
        return_outputs_as_base64=None,
    )

    job = parse(empty)

    assert job.s3.bucket_name == job.s3.endpoint_url == job.caller.webhook_url == ""
    assert job.caller.webhook_timeout_s is None


def test_pyworker_envelope_is_unwrapped(reference: dict[str, Any]) -> None:
    envelope = {"payload": reference, "auth_data": {"signature": SECRET}, "session_id": None}

    assert parse(envelope).workflow == reference["input"]["workflow_json"]


@pytest.mark.parametrize("empty", ["", None, {}])
def test_template_may_stand_beside_fields_that_are_not_set(empty: Any) -> None:
    job = parse({"input": {"modifier": "A", "modifications": empty, "workflow_json": empty}})
    own = parse(event(image(), modifier="", modifications=empty))

    assert (job.template, job.modifications, job.workflow) == ("A", {}, {})
    assert own.template == ""
    assert own.workflow


@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: {"payload": value}])
def test_bare_workflow_is_a_request(wrap: Callable[[Any], Any]) -> None:
    workflow = image()

    job = parse(wrap(workflow))

    assert job.workflow == workflow
    assert not job.caller.is_id_given


def test_node_of_a_bare_workflow_may_have_the_id_input() -> None:
    workflow = {"input": node("LoadImage", image="a.png"), "payload": node("SaveImage")}

    assert parse(workflow).workflow == workflow


def test_input_with_a_workflow_is_a_request_with_any_other_field() -> None:
    request = {"input": {"workflow_json": image(), "class_type": "x", "inputs": {}}}

    assert as_request(request) is request
    assert parse(request).workflow == request["input"]["workflow_json"]


def test_unknown_fields_are_ignored() -> None:
    assert parse({**event(image(), priority=3), "version": 2}).workflow


@pytest.mark.parametrize(
    ("request_", "path", "found", "expected"),
    [
        (None, "the event", "null", "an object"),
        ([], "the event", "a list", "an object"),
        ("text", "the event", "a string", "an object"),
        ({}, "the event", "'input' is missing", "workflow_json"),
        ({"workflow_json": {}}, "the event", "the keys workflow_json", '{"input"'),
        ({"input": 3}, "input", "a number 3", "an object"),
        ({"input": {}}, "input", "'workflow_json' is missing", "no keys"),
        (event("{}"), "input.workflow_json", 'a string "{}"', "an object"),
        (event({}), "input.workflow_json", "an empty object", "at least one node"),
        (event({"1": 5}), "input.workflow_json.1", "a number 5", "an object"),
        (event({"1": {}}), "input.workflow_json.1", "missing", "'class_type', 'inputs'"),
        (event({"1": {"class_type": 1, "inputs": {}}}), "1.class_type", "a number 1", "a string"),
        (event({"1": {"class_type": "", "inputs": {}}}), "1.class_type", "an empty string", "text"),
        (event({"1": {"class_type": "A", "inputs": []}}), "1.inputs", "a list", "an object"),
        (event({"nodes": [], "links": []}), "input.workflow_json", "editor format", "Export (API)"),
        ({"nodes": [], "links": []}, "the event", "editor format", "Export (API)"),
        ({"payload": {"nodes": []}}, "the event", "editor format", "Export (API)"),
        ({"1": {"class_type": "A"}}, "input.workflow_json.1", "missing", "'inputs'"),
        ({"1": {"class_type": "A", "inputs": {}}, "2": 5}, "the event", "the keys 1, 2", "input"),
        (event(image(), modifier="A"), "input", "both 'modifier' and 'workflow_json'", "one of"),
        (event(image(), modifications={"a": 1}), "modifications", "without 'modifier'", "name"),
        ({"input": {"modifier": 5}}, "input.modifier", "a number 5", "a string"),
        ({"input": {"modifier": "A" * 201}}, "input.modifier", "201 characters", "200"),
        ({"input": {"modifier": "A", "modifications": [1]}}, "modifications", "a list", "object"),
        ({"input": {"modifier": "A", "modifications": "x"}}, "modifications", "1 characters", "0"),
        ({"input": {"modifier": "A", "modifications": {"a": float("nan")}}},
         "input.modifications", "NaN", "JSON"),
        ({"input": {"modifier": ""}}, "input", "'workflow_json' is missing", "modifier"),
        (event(image(), request_id=7), "input.request_id", "a number 7", "a string"),
        (event(image(), request_id="x" * 201), "input.request_id", "201 characters", "200"),
        (event(image(), s3="x"), "input.s3", "a string", "an object"),
        (event(image(), s3={"endpoint_url": "s3.test"}), "s3.endpoint_url", "a string", "URL"),
        (event(image(), webhook={"url": "ftp://a"}), "input.webhook.url", "a string", "http://"),
        (event(image(), webhook={"timeout": 0}), "webhook.timeout", "a number", "more than 0"),
        (event(image(), webhook={"extra_params": []}), "extra_params", "a list", "an object"),
        (event(image() | {"1": {"class_type": "A", "inputs": {"x": float("nan")}}}),
         "input.workflow_json", "NaN", "JSON"),
        (event(image(), return_outputs_as_base64="yes"), "base64", 'a string "yes"', "true or"),
    ],
)  # fmt: skip
def test_refusal_names_path_found_and_expected(
    request_: Any, path: str, found: str, expected: str
) -> None:
    message = refusal(request_)

    assert path in message
    assert found in message
    assert expected in message


def test_deep_nesting_is_refused() -> None:
    deep: Any = "end"
    for _ in range(100_000):
        deep = [deep]

    assert "levels of nesting" in refusal(event({"1": {"class_type": "A", "inputs": {"x": deep}}}))


def test_at_most_five_problems_are_named() -> None:
    message = refusal(event({str(n): {} for n in range(20)}))

    assert message.count("is missing") == 5
    assert "and 15 more" in message


@pytest.mark.parametrize(
    "given",
    [
        {"s3": SECRET},
        {"s3": {"secret_access_key": {"value": SECRET}}},
        {"s3": {"access_key_id": [SECRET]}},
        {"s3": {"endpoint_url": f"{SECRET}@host"}},
        {"webhook": SECRET},
        {"webhook": {"url": f"ftp://user:{SECRET}@host"}},
        {"webhook": {"secret": [SECRET], "timeout": SECRET}},
    ],
)
def test_refusal_never_shows_a_secret(given: dict[str, Any]) -> None:
    assert SECRET not in refusal(event(image(), **given))


def test_no_repr_shows_a_secret() -> None:
    job = parse(
        event(
            image(),
            s3={"access_key_id": SECRET, "secret_access_key": SECRET},
            webhook={"url": f"https://host/{SECRET}", "secret": SECRET},
        )
    )

    assert SECRET not in repr(job)


def test_invalid_request_has_a_caller() -> None:
    caller = caller_of({"input": {"request_id": "abc", "webhook": {"url": "http://h/x"}}})

    assert caller.request_id == "abc"
    assert caller.webhook_url == "http://h/x"
