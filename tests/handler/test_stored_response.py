"""What a store keeps of a response."""

import itertools
import json
from typing import Any

import pytest

from handler.jobs.stored_response import StoredResponse, stored_response


def response(*, text: str = "", **changes: Any) -> dict[str, Any]:
    return {
        "id": "a",
        "status": "completed",
        "comfyui_response": {
            "prompt": {"outputs": text},
            "execution_details": {"nodes_executed": ["1"], "progress_updates": [{"value": 1}]},
        },
        "output": [],
        **changes,
    }


def kept(response: dict[str, Any], max_bytes: int | None) -> StoredResponse:
    """What is stored of a success."""
    stored = stored_response(response, max_bytes)
    assert stored.answers_repeats or max_bytes is not None
    return stored


def size(response: dict[str, Any]) -> int:
    return len(json.dumps(response))


@pytest.mark.parametrize(
    ("failure", "max_bytes"),
    list(
        itertools.product(
            [
                {"status": "failed", "error": {"type": "ExecutionFailed"}},
                {"status": "cancelled", "error": {"type": "Cancelled"}},
                {"error": {"type": "UploadFailed"}},
            ],
            [None, 380_000, 300],
        )
    ),
    ids=str,
)
def test_failure_is_stored_but_answers_no_repeat(
    failure: dict[str, Any], max_bytes: int | None
) -> None:
    stored = stored_response(response(text="x" * 1000, **failure), max_bytes)

    assert not stored.answers_repeats
    assert stored.response.get("error") == failure["error"]
    assert max_bytes is None or size(stored.response) <= max(max_bytes, 500)


def test_response_at_the_limit_is_stored_whole() -> None:
    whole = response(text="x" * 1000)

    assert kept(whole, size(whole)).response == whole
    assert kept(whole, None).response == whole


def test_response_above_the_limit_is_stored_without_history_and_progress() -> None:
    whole = response(text="x" * 1000, warnings=["mind the gap"])

    stored = kept(whole, size(whole) - 1).response

    assert stored["comfyui_response"] == {
        "execution_details": {"nodes_executed": ["1"], "progress_updates": []}
    }
    assert stored["warnings"][0] == "mind the gap"
    assert "too large" in stored["warnings"][1]
    assert whole["comfyui_response"]["execution_details"]["progress_updates"] == [{"value": 1}]


def test_size_counts_every_byte_that_is_stored() -> None:
    whole = response(text="ü" * 100)

    assert kept(whole, size(whole)).response == whole
    assert kept(whole, size(whole) - 1).response != whole


def test_content_of_a_file_with_a_url_is_left_out() -> None:
    content = {"base64": "x" * 1000, "text": "y" * 1000}
    whole = response(output=[{"filename": "a.txt", "url": "https://example.com/a.txt", **content}])

    stored = kept(whole, 1000).response

    assert stored["output"] == [{"filename": "a.txt", "url": "https://example.com/a.txt"}]


def test_response_that_is_the_only_place_of_a_file_is_not_stored_without_it() -> None:
    files = [{"filename": "a.png", "base64": "x" * 1000}, {"filename": "b.png", "url": "https://b"}]

    assert not kept(response(output=files), 1000).answers_repeats


def test_urls_are_left_out_at_last() -> None:
    files = [{"filename": f"{n}.png", "url": "https://example.com/" + "x" * 100} for n in range(9)]

    stored = kept(response(output=files), 1000).response

    assert size(stored) <= 1000
    assert any("URL" in warning for warning in stored["warnings"])
