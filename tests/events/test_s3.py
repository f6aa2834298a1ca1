"""Jobs that lie in a bucket (moto's server), told of by S3 itself or through EventBridge."""

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

Tell = Callable[[dict[str, str]], dict[str, Any]]


def as_notification(state: dict[str, str]) -> dict[str, Any]:
    told: dict[str, Any] = sample("s3_object_created")
    told["Records"][0]["s3"]["object"] |= {"eTag": state["etag"]}
    if "version" in state:
        told["Records"][0]["s3"]["object"]["versionId"] = state["version"]
    return told


def as_eventbridge(state: dict[str, str]) -> dict[str, Any]:
    told: dict[str, Any] = sample("eventbridge_s3_object_created")
    told["detail"]["object"]["etag"] = state["etag"]
    if "version" in state:
        told["detail"]["object"]["version-id"] = state["version"]
    return told


both_ways = pytest.mark.parametrize("tell", [as_notification, as_eventbridge])


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


def responses(told: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = app.lambda_handler(told, Context(100))["responses"]
    return found


def refusal(told: dict[str, Any]) -> str:
    (response,) = responses(told)
    assert response["error"]["type"] == "InvalidRequest"
    message: str = response["message"]
    return message


@both_ways
def test_bare_workflow_is_run_and_named_after_its_object(bucket: Bucket, tell: Tell) -> None:
    state = bucket.put(workflows.image())

    (response,) = responses(tell(state))

    assert response["status"] == "completed"
    assert response["id"] == f"{BUCKET}/{KEY}/{state['etag']}"


@both_ways
@pytest.mark.parametrize("wrap", [lambda r: r, lambda r: {"payload": r, "auth_data": {}}])
def test_request_keeps_its_own_id(bucket: Bucket, tell: Tell, wrap: Callable[[Any], Any]) -> None:
    state = bucket.put(wrap(event({"1": {}}, request_id="mine")))

    (response,) = responses(tell(state))

    assert response["id"] == "mine"
    assert response["error"]["type"] == "InvalidRequest"


@both_ways
def test_version_that_was_told_of_is_read(bucket: Bucket, tell: Tell) -> None:
    bucket.keep_versions()
    state = bucket.put(event({"old": {}}))
    bucket.put(event({"new": {}}))

    (response,) = responses(tell(state))

    assert response["id"] == f"{BUCKET}/{KEY}/{state['version']}"
    assert "workflow_json.old" in response["message"]


@both_ways
def test_object_that_is_gone_is_answered(bucket: Bucket, tell: Tell) -> None:
    state = bucket.put({})
    bucket.delete()

    assert "not there any more (NoSuchKey)" in refusal(tell(state))


def test_overwritten_object_is_left_to_its_own_event(bucket: Bucket) -> None:
    state = bucket.put(workflows.image())
    bucket.put(workflows.image())

    assert "not there any more (PreconditionFailed)" in refusal(as_notification(state))


@pytest.mark.parametrize("content", [b"", b"{not json", b"\xff\xfe", b"[1]", {"prompt": 1}])
def test_object_that_is_no_job_is_named(bucket: Bucket, content: Any) -> None:
    assert f"s3://{BUCKET}/{KEY}: expected a request" in refusal(
        as_notification(bucket.put(content))
    )


def test_object_that_is_too_large_is_not_read(bucket: Bucket) -> None:
    state = bucket.put(b" " * (MAX_BYTES + 1))

    assert "expected at most" in refusal(as_notification(state))


def test_missing_bucket_is_tried_again(aws: str) -> None:
    with pytest.raises(TryAgain, match=r"cannot be read: NoSuchBucket"):
        app.lambda_handler(sample("s3_object_created"), Context(100))


@pytest.mark.parametrize("key", ["jobs/cat.png", "jobs/json", "jobs/.json/cat"])
def test_other_keys_are_left_alone(key: str) -> None:
    told = sample("s3_object_created")
    told["Records"][0]["s3"]["object"]["key"] = key

    assert responses(told) == []


def test_object_that_goes_is_no_job() -> None:
    assert responses(sample("s3_object_removed")) == []


def test_id_of_a_long_key_is_short_and_always_the_same() -> None:
    one, other = (S3Object(bucket="b" * 63, key="k" * 1000 + x, etag="e") for x in "12")

    assert one.request_id == one.request_id != other.request_id
    assert len(one.request_id) <= 200
