"""Where a function's answer says that files are, whatever event source it answers."""

import json
from pathlib import Path
from typing import Any

import pytest

from runtime.output_files import files_without_url, responses_in


def response(*outputs: dict[str, Any]) -> dict[str, Any]:
    return {"id": "job", "status": "completed", "output": list(outputs)}


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
