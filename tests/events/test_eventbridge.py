"""The detail of an EventBridge event is a job; S3's events are in test_s3.py."""

from typing import Any

import pytest

from events.asynchronous import TryAgain
from handler import app
from tests import workflows
from tests.conftest import Context
from tests.events.samples import sample
from tests.workflows import event


def eventbridge_event(**changes: Any) -> dict[str, Any]:
    return {**sample("eventbridge_request"), **changes}


@pytest.mark.usefixtures("comfyui")
def test_detail_is_run_and_answered() -> None:
    (response,) = app.lambda_handler(eventbridge_event(), Context(100))["responses"]

    assert (response["id"], response["status"]) == ("eventbridge-1", "completed")


def test_invalid_detail_is_answered() -> None:
    (response,) = app.lambda_handler(eventbridge_event(detail={"order": 7}), Context(100))[
        "responses"
    ]

    assert response["error"]["type"] == "InvalidRequest"


@pytest.mark.usefixtures("comfyui")
def test_retryable_failure_raises_so_that_lambda_repeats_the_event() -> None:
    with pytest.raises(TryAgain, match="OutOfMemory: "):
        app.lambda_handler(
            eventbridge_event(detail=event(workflows.one("TestOutOfMemory"))), Context(100)
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"detail-type": "Object Deleted", "detail": {"bucket": {"name": "b"}}},
        {"detail-type": "Object Created", "detail": {"bucket": {"name": "b"}}},
        {"detail-type": "Object Created", "detail": {"bucket": [], "object": {"key": 5}}},
    ],
)
def test_other_events_of_s3_are_ignored(changes: dict[str, Any]) -> None:
    assert app.lambda_handler(eventbridge_event(source="aws.s3", **changes), None) == {
        "responses": []
    }
