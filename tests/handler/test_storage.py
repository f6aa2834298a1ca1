"""Uploads to a real S3 server that checks signatures, and the URLs that read them back."""

import json
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests

from runtime.local_s3 import LocalS3
from tests import workflows
from tests.conftest import run

pytestmark = pytest.mark.usefixtures("comfyui")


def s3_fields(server: LocalS3, **other: str) -> dict[str, str]:
    return {
        "access_key_id": server.access_key_id,
        "secret_access_key": server.secret_access_key,
        "endpoint_url": server.endpoint_url,
        "bucket_name": server.bucket_name,
        "region": "us-east-1",
        **other,
    }


@pytest.fixture
def s3_environment(s3: LocalS3, monkeypatch: pytest.MonkeyPatch) -> LocalS3:
    for name, value in s3_fields(s3).items():
        monkeypatch.setenv(f"S3_{name.upper()}", value)
    return s3


def test_every_file_is_uploaded_and_its_url_reads_it_back(s3_environment: LocalS3) -> None:
    response = run(workflows.many_outputs())

    assert response["status"] == "completed"
    assert len(response["output"]) == 7
    for item in response["output"]:
        answer = requests.get(item["url"], timeout=10)
        assert answer.status_code == 200
        assert answer.content == Path(item["local_path"]).read_bytes()


def test_file_that_was_never_written_is_no_failed_upload(s3_environment: LocalS3) -> None:
    result = json.dumps({"things": [{"filename": "never-written.png"}]})

    response = run(workflows.image() | workflows.one("TestUi", ui=result))

    assert response["status"] == "failed"
    assert response["error"]["type"] == "ExecutionFailed"
    assert response["error"]["retryable"] is False
    assert sorted("url" in item for item in response["output"]) == [False, True]


def test_content_type_is_that_of_the_file(s3_environment: LocalS3) -> None:
    video = run(workflows.video())["output"][0]
    caption = run(workflows.text())["output"][0]

    assert requests.get(video["url"], timeout=10).headers["Content-Type"] == "video/mp4"
    assert requests.get(caption["url"], timeout=10).headers["Content-Type"].startswith("text/")


def test_url_that_was_tampered_with_is_refused(s3_environment: LocalS3) -> None:
    url = run(workflows.image())["output"][0]["url"]

    assert requests.get(url[:-4] + "0000", timeout=10).status_code == 403


def test_url_expiry_is_the_configured_one(
    s3_environment: LocalS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S3_URL_EXPIRES", "1234")

    assert "X-Amz-Expires=1234" in run(workflows.image())["output"][0]["url"]


def test_url_ends_no_later_than_the_session_that_signs_it(
    s3: LocalS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_ends = datetime.now(UTC) + timedelta(minutes=20)
    for name, value in {
        "S3_ENDPOINT_URL": s3.endpoint_url,
        "S3_BUCKET_NAME": s3.bucket_name,
        "AWS_ACCESS_KEY_ID": s3.access_key_id,
        "AWS_SECRET_ACCESS_KEY": s3.secret_access_key,
        "AWS_CREDENTIAL_EXPIRATION": session_ends.isoformat(),
    }.items():
        monkeypatch.setenv(name, value)

    (item,) = run(workflows.image())["output"]

    assert requests.get(item["url"], timeout=10).status_code == 200
    signature = parse_qs(urlsplit(item["url"]).query)
    signed = datetime.strptime(signature["X-Amz-Date"][0], "%Y%m%dT%H%M%S%z")
    ends = signed + timedelta(seconds=int(signature["X-Amz-Expires"][0]))
    assert session_ends - timedelta(minutes=1) < ends <= session_ends
    assert abs(datetime.fromisoformat(item["url_expires_at"]) - ends) <= timedelta(seconds=1)


def test_fields_of_the_request_override_the_environment_one_by_one(
    s3: LocalS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S3_BUCKET_NAME", "somewhere-else")
    monkeypatch.setenv("S3_SECRET_ACCESS_KEY", s3.secret_access_key)
    monkeypatch.setenv("S3_ENDPOINT_URL", s3.endpoint_url)
    fields = s3_fields(s3) | {"secret_access_key": "", "endpoint_url": ""}

    (item,) = run(workflows.image(), s3=fields)["output"]

    assert f"/{s3.bucket_name}/" in item["url"]
    assert requests.get(item["url"], timeout=10).status_code == 200


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"secret_access_key": "canary-wrong"}, "SignatureDoesNotMatch"),
        ({"bucket_name": "not-a-bucket"}, "S3 refused the upload"),
        ({"endpoint_url": "http://127.0.0.1:1"}, "endpoint_url"),
    ],
)
def test_failed_upload_is_reported_beside_the_file_and_as_a_retryable_error(
    s3: LocalS3, wrong: dict[str, str], words: str
) -> None:
    response = run(workflows.image(), s3=s3_fields(s3) | wrong)

    (item,) = response["output"]
    assert words in item["upload_error"]
    assert "url" not in item
    assert Path(item["local_path"]).is_file()
    assert response["status"] == "completed"
    assert response["error"]["type"] == "UploadFailed"
    assert response["error"]["retryable"] is True


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"bucket_name": "Not A Bucket!"}, "s3.bucket_name"),
        ({"region": "us east"}, "s3.region"),
        ({"endpoint_url": "http://a b"}, "s3.endpoint_url"),
        ({"endpoint_url": "http://["}, "s3.endpoint_url"),
        ({"endpoint_url": "http://host:99999"}, "s3.endpoint_url"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_the_job_runs(
    s3: LocalS3, wrong: dict[str, str], words: str
) -> None:
    response = run(workflows.image(), s3=s3_fields(s3) | wrong)

    assert response["status"] == "failed"
    assert response["error"]["type"] == "InvalidRequest"
    assert words in response["message"]
    assert response["comfyui_response"] == {}


@pytest.mark.parametrize("workflow", [workflows.image(), workflows.one("NoSuchNode"), {}, None])
@pytest.mark.parametrize("endpoint", ["", "http://127.0.0.1:1"])
def test_no_secret_reaches_a_log_or_the_response(
    workflow: Any,
    endpoint: str,
    s3: LocalS3,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    canaries = {"secret_access_key": "canary-1", "access_key_id": "canary-2"}
    fields = s3_fields(s3) | canaries | {"endpoint_url": endpoint or s3.endpoint_url}

    with caplog.at_level(logging.DEBUG):
        response = run(
            workflow,
            s3=fields,
            webhook={"url": "http://127.0.0.1:1/canary-3?canary-4", "secret": "canary-5"},
            seconds=20.0,
        )

    written = "".join(str(record.__dict__) for record in caplog.records if "lambda" in record.name)
    assert "canary" not in json.dumps(response)
    assert "canary" not in written + "".join(capfd.readouterr())
