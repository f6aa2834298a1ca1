"""Jobs in a bucket (moto's server), whose events come from S3 itself or through EventBridge."""

import json
from collections.abc import Callable
from typing import Any

import boto3
import pytest

from events.asynchronous import TryAgain
from events.s3_objects import MAX_BYTES, S3Object
from handler import app
from tests import workflows
from tests.conftest import Context
from tests.events.samples import sample
from tests.workflows import event

BUCKET = "comfyui-jobs"
KEY = "jobs/a cat & 1+1.json"

MakeEvent = Callable[[dict[str, str]], dict[str, Any]]


def as_notification(state: dict[str, str]) -> dict[str, Any]:
    notification: dict[str, Any] = sample("s3_object_created")
    notification["Records"][0]["s3"]["object"] |= {"eTag": state["etag"]}
    if "version" in state:
        notification["Records"][0]["s3"]["object"]["versionId"] = state["version"]
    return notification


def as_eventbridge(state: dict[str, str]) -> dict[str, Any]:
    created: dict[str, Any] = sample("eventbridge_s3_object_created")
    created["detail"]["object"]["etag"] = state["etag"]
    if "version" in state:
        created["detail"]["object"]["version-id"] = state["version"]
    return created


both_ways = pytest.mark.parametrize("make_event", [as_notification, as_eventbridge])


class Bucket:
    def __init__(self, client: Any) -> None:
        self._client = client

    def put(self, content: Any, key: str = KEY) -> dict[str, str]:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        answer = self._client.put_object(Bucket=BUCKET, Key=key, Body=body)
        state = {"etag": answer["ETag"].strip('"')}
        return state | ({"version": answer["VersionId"]} if "VersionId" in answer else {})

    def keep_versions(self) -> None:
        status = {"Status": "Enabled"}
        self._client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration=status)

    def delete(self) -> None:
        self._client.delete_object(Bucket=BUCKET, Key=KEY)


@pytest.fixture
def bucket(aws: str) -> Any:
    client = boto3.session.Session().client("s3")
    client.create_bucket(Bucket=BUCKET)
    yield Bucket(client)
    for version in client.list_object_versions(Bucket=BUCKET).get("Versions", []):
        place = {"Key": version["Key"], "VersionId": version["VersionId"]}
        client.delete_object(Bucket=BUCKET, **place)
    for marker in client.list_object_versions(Bucket=BUCKET).get("DeleteMarkers", []):
        place = {"Key": marker["Key"], "VersionId": marker["VersionId"]}
        client.delete_object(Bucket=BUCKET, **place)
    client.delete_bucket(Bucket=BUCKET)
    client.close()


def responses(s3_event: dict[str, Any]) -> list[dict[str, Any]]:
    reply: dict[str, Any] = app.lambda_handler(s3_event, Context(100))
    return list(reply["responses"])


def refusal(s3_event: dict[str, Any]) -> str:
    (response,) = responses(s3_event)
    assert response["error"]["type"] == "InvalidRequest"
    message: str = response["message"]
    return message


@pytest.mark.usefixtures("comfyui")
@both_ways
def test_bare_workflow_is_run_and_named_after_its_object(
    bucket: Bucket, make_event: MakeEvent
) -> None:
    state = bucket.put(workflows.image())

    (response,) = responses(make_event(state))

    assert response["status"] == "completed"
    assert response["id"] == f"{BUCKET}/{KEY}/{state['etag']}"


@both_ways
@pytest.mark.parametrize("wrap", [lambda r: r, lambda r: {"payload": r, "auth_data": {}}])
def test_request_keeps_its_own_id(
    bucket: Bucket, make_event: MakeEvent, wrap: Callable[[Any], Any]
) -> None:
    state = bucket.put(wrap(event({"1": {}}, request_id="mine")))

    (response,) = responses(make_event(state))

    assert response["id"] == "mine"
    assert response["error"]["type"] == "InvalidRequest"


@both_ways
def test_version_that_the_event_names_is_read(bucket: Bucket, make_event: MakeEvent) -> None:
    bucket.keep_versions()
    state = bucket.put(event({"old": {}}))
    bucket.put(event({"new": {}}))

    (response,) = responses(make_event(state))

    assert response["id"] == f"{BUCKET}/{KEY}/{state['version']}"
    assert "workflow_json.old" in response["message"]


@both_ways
def test_object_that_was_deleted_is_an_invalid_request(
    bucket: Bucket, make_event: MakeEvent
) -> None:
    state = bucket.put({})
    bucket.delete()

    assert "not there any more (NoSuchKey)" in refusal(make_event(state))


def test_overwritten_object_is_run_by_its_later_event_only(bucket: Bucket) -> None:
    state = bucket.put(workflows.image())
    bucket.put(workflows.image())

    assert "not there any more (PreconditionFailed)" in refusal(as_notification(state))


@pytest.mark.parametrize("content", [b"", b"{not json", b"\xff\xfe", b"[1]", {"prompt": 1}])
def test_object_without_a_job_is_named(bucket: Bucket, content: Any) -> None:
    assert f"s3://{BUCKET}/{KEY}: expected a request" in refusal(
        as_notification(bucket.put(content))
    )


def test_object_in_editor_format_is_refused_with_the_way_to_export_it(bucket: Bucket) -> None:
    message = refusal(as_notification(bucket.put({"nodes": [], "links": []})))

    assert message.startswith(f"s3://{BUCKET}/{KEY}: found a workflow in ComfyUI's editor format")
    assert "Export (API)" in message


def test_object_that_is_too_large_is_not_read(bucket: Bucket) -> None:
    state = bucket.put(b" " * (MAX_BYTES + 1))

    assert "expected at most" in refusal(as_notification(state))


def test_missing_bucket_is_tried_again(aws: str) -> None:
    with pytest.raises(TryAgain, match=r"cannot be read: NoSuchBucket"):
        app.lambda_handler(sample("s3_object_created"), Context(100))


@pytest.mark.parametrize("key", ["jobs/cat.png", "jobs/json", "jobs/.json/cat"])
def test_other_keys_are_ignored(key: str) -> None:
    notification = sample("s3_object_created")
    notification["Records"][0]["s3"]["object"]["key"] = key

    assert responses(notification) == []


def test_removed_object_is_ignored() -> None:
    assert responses(sample("s3_object_removed")) == []


def test_id_for_a_long_key_is_short_and_always_the_same() -> None:
    one, other = (S3Object(bucket="b" * 63, key="k" * 1000 + x, etag="e") for x in "12")

    assert one.request_id == one.request_id != other.request_id
    assert len(one.request_id) <= 200
