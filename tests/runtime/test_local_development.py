"""Local commands let a request name loopback; other addresses stay as OUTBOUND_ALLOW says."""

import json
from pathlib import Path

import pytest

from runtime import cli
from runtime.commands.local_development import allow_loopback
from tests.conftest import WebhookReceiver
from tests.workflows import event


@pytest.mark.parametrize(
    ("allowed", "calls"), [("", 1), ("10.0.0.0/8", 0)], ids=["not set", "set to another network"]
)
def test_invoke_calls_a_webhook_on_loopback_unless_the_variable_is_set(
    allowed: str,
    calls: int,
    tmp_path: Path,
    webhook_receiver: WebhookReceiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # There is no ComfyUI to start: an invalid request calls its webhook, too.
    monkeypatch.setenv("COMFYUI_HOME", str(tmp_path / "nothing"))
    monkeypatch.setenv("WORKER_DIR", str(tmp_path / "worker"))
    monkeypatch.setenv("OUTBOUND_ALLOW", allowed)
    request = tmp_path / "event.json"
    request.write_text(json.dumps(event({}, webhook={"url": webhook_receiver.url})))

    cli.main(["invoke", "-e", str(request)])

    assert len(webhook_receiver.calls) == calls


def test_environment_without_the_variable_allows_loopback() -> None:
    assert allow_loopback({"A": "1"}) == {"A": "1", "OUTBOUND_ALLOW": "127.0.0.0/8,::1"}
    assert allow_loopback({"OUTBOUND_ALLOW": "a.test"}) == {"OUTBOUND_ALLOW": "a.test"}
