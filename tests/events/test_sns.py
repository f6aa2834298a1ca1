"""A topic's message is a job; Lambda repeats it after a retryable failure only."""

import json
from typing import Any

import pytest

from events.asynchronous import TryAgain
from events.contract import response_problems
from handler import app
from tests import workflows
from tests.conftest import Context
from tests.events.samples import sample
from tests.workflows import event


def notification(message: Any) -> dict[str, Any]:
    sns_event: dict[str, Any] = sample("sns_notification")
    text = message if isinstance(message, str) else json.dumps(message)
    sns_event["Records"][0]["Sns"]["Message"] = text
    return sns_event


@pytest.mark.usefixtures("comfyui")
def test_message_is_run_and_answered() -> None:
    (response,) = app.lambda_handler(sample("sns_notification"), Context(100))["responses"]

    assert response_problems(response) == []
    assert (response["id"], response["status"]) == ("sns-1", "completed")


@pytest.mark.parametrize("message", ["{not json", "[" * 100_000, event({})])
def test_invalid_message_is_answered_and_not_repeated(message: Any) -> None:
    (response,) = app.lambda_handler(notification(message), Context(100))["responses"]

    assert response["error"]["type"] == "InvalidRequest"


@pytest.mark.usefixtures("comfyui")
def test_retryable_failure_raises_so_that_lambda_repeats_the_event() -> None:
    broken = event(workflows.one("TestOutOfMemory"))

    with pytest.raises(TryAgain, match="OutOfMemory: "):
        app.lambda_handler(notification(broken), Context(100))


def test_event_is_repeated_after_a_wrong_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_PORT", "x")

    with pytest.raises(TryAgain, match=r"Misconfigured: .*COMFYUI_PORT"):
        app.lambda_handler(sample("sns_notification"), Context(100))
