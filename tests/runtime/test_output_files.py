"""The files that a function's answer names: downloads, and the paths of files without a URL."""

import json
import os
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from runtime import local_s3 as module
from runtime.local_s3 import LocalS3
from runtime.output_files import download_outputs, files_without_url, responses_in


def response(*outputs: dict[str, Any], id: str = "job") -> dict[str, Any]:
    return {"id": id, "status": "completed", "output": list(outputs)}


def link_to(s3: LocalS3, key: str, content: bytes) -> str:
    client = boto3.client(
        "s3",
        endpoint_url=s3.endpoint_url,
        aws_access_key_id=s3.access_key_id,
        aws_secret_access_key=s3.secret_access_key,
        region_name=module.REGION,
        config=Config(signature_version="s3v4"),
    )
    client.put_object(Bucket=s3.bucket_name, Key=key, Body=content)
    target = {"Bucket": s3.bucket_name, "Key": key}
    return str(client.generate_presigned_url("get_object", Params=target, ExpiresIn=60))


@pytest.mark.parametrize(
    ("answer", "count"),
    [
        (response(), 1),
        ({"responses": [response(), response()]}, 2),
        ({"statusCode": 200, "body": json.dumps(response())}, 1),
        ({"batchItemFailures": []}, 0),
        ({"errorType": "ValueError", "errorMessage": ""}, 0),
        (None, 0),
    ],
)
def test_responses_are_found_in_the_answer_of_any_source(answer: object, count: int) -> None:
    assert responses_in(answer) == [response()] * count


def test_file_without_a_url_is_named_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.touch()
    local, stored = {"local_path": str(path)}, {"local_path": str(path), "url": "http://bucket/a"}

    assert list(files_without_url(response(local, stored), tmp_path)) == [f"file: {path}"]


def test_file_that_was_not_uploaded_is_named_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.touch()
    output = {"local_path": str(path), "upload_error": "AccessDenied"}

    assert list(files_without_url(response(output), tmp_path)) == [
        f"file: {path} (not uploaded: AccessDenied)"
    ]


@pytest.mark.parametrize(
    ("output", "reason"),
    [({"upload_error": "the node named none"}, "the node named none"), ({}, "it is not there")],
)
def test_missing_file_is_reported_with_the_reason(output: dict[str, str], reason: str) -> None:
    (line,) = files_without_url(response({"local_path": "/none/a.png", **output}), Path("/none"))

    assert line.startswith(f"no file: /none/a.png: {reason}")


def test_answer_to_a_queue_gets_the_folder_of_all_jobs(tmp_path: Path) -> None:
    (line,) = files_without_url({"batchItemFailures": []}, tmp_path)

    assert line.startswith(f"files: {tmp_path}/<request id>")


def test_outputs_are_downloaded_into_a_folder_of_the_job(
    s3: LocalS3, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film, twin = link_to(s3, "one/a.mp4", b"film"), link_to(s3, "two/a.mp4", b"twin")
    outputs = [
        {"filename": "a.mp4", "url": film},
        {"filename": "a.mp4", "url": twin},
        {"filename": "note.txt", "text": "no URL"},
    ]

    is_complete = download_outputs(response(*outputs, id="../job 1"), tmp_path)

    folder = tmp_path / "_job_1"
    shown = capsys.readouterr()
    assert is_complete
    assert (folder / "a.mp4").read_bytes() == b"film"
    assert (folder / "1_a.mp4").read_bytes() == b"twin"
    assert shown.out.splitlines() == [str(folder / "a.mp4"), str(folder / "1_a.mp4")]
    assert "open this video in any player or browser, 4 B:" in shown.err


def test_output_that_cannot_be_downloaded_is_named(
    s3: LocalS3, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stale = link_to(s3, "b.png", b"x").replace("b.png", "c.png")

    is_complete = download_outputs(response({"filename": "c.png", "url": stale}), tmp_path)

    shown = capsys.readouterr()
    assert not is_complete
    assert shown.err == "cannot download c.png: HTTPError\n"
    assert shown.out == ""
    assert os.listdir(tmp_path / "job") == []


def test_output_that_was_not_uploaded_is_a_missing_file(tmp_path: Path) -> None:
    outputs = [{"filename": "d.png", "upload_error": "AccessDenied"}]

    assert not download_outputs(response(*outputs), tmp_path)
