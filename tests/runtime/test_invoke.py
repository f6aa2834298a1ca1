"""The command around the host: events in, response and exit status out, nothing left behind."""

import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from handler.settings import PROJECT
from handler.worker_protocol import SOCKET_NAME, State
from runtime import cli
from runtime.commands import invoke
from runtime.lambda_host.failures import InvocationResult
from tests.conftest import worker_status
from tests.processes import is_running, wait_until

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(autouse=True)
def _no_comfyui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker of these tests finds nothing to start: they are about what is around it."""
    monkeypatch.setenv("COMFYUI_HOME", str(tmp_path / "nothing"))
    monkeypatch.delenv("COMFYUI_DIR", raising=False)
    monkeypatch.setenv("WORKER_DIR", str(tmp_path / "w"))
    monkeypatch.setenv("COMFYUI_DATA_DIR", str(tmp_path / "data"))


def run(*arguments: str) -> int:
    return cli.main(["invoke", *arguments])


@pytest.mark.parametrize(
    ("payload", "outcome"),
    [
        ({"status": "completed"}, ("completed", True)),
        ({"status": "failed"}, ("failed", False)),
        ({"batchItemFailures": []}, ("completed", True)),
        ({"batchItemFailures": [{"itemIdentifier": "1"}]}, ("failed", False)),
        ({"responses": [{"status": "completed"}]}, ("completed", True)),
        ({"responses": [{"status": "completed"}, {"status": "failed"}]}, ("failed", False)),
        ({"statusCode": 200, "body": '{"status": "completed"}'}, ("completed", True)),
        ({}, ("answered without a status", False)),
        (None, ("answered without a status", False)),
    ],
)
def test_success_is_read_from_the_response(payload: object, outcome: tuple[str, bool]) -> None:
    assert invoke.outcome_of(InvocationResult(json.dumps(payload).encode())) == outcome


def test_function_error_is_no_success() -> None:
    result = InvocationResult(b'{"status": "completed"}', "ValueError")

    assert invoke.outcome_of(result) == ("function error ValueError", False)


def test_response_alone_is_on_stdout(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(invoke, "HANDLER", "tests.runtime.handlers.answers")
    event = json.dumps({"status": "completed", "text": "é"}).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(event)))

    status = run("-e", "-")

    shown = capfd.readouterr()
    assert status == 0
    assert shown.out == '{\n  "status": "completed",\n  "text": "\\u00e9"\n}\n'
    assert "completed after" in shown.err


def test_function_error_shows_the_last_log_lines(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(invoke, "HANDLER", "tests.runtime.handlers.raises")
    event = tmp_path / "event.json"
    event.write_text("{}")

    status = run("--event", str(event))

    shown = capfd.readouterr()
    assert status == 1
    assert json.loads(shown.out)["errorType"] == "ValueError"
    assert "in raises" in shown.err
    assert "function error ValueError after" in shown.err


def test_failed_import_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(invoke, "HANDLER", "tests.runtime.nowhere.handler")
    event = tmp_path / "event.json"
    event.write_text("{}")

    status = run("--event", str(event))

    first = capfd.readouterr().err.splitlines()[0]
    assert status == 1
    assert "warning: Runtime.ImportModuleError: Unable to import module" in first


@pytest.mark.parametrize("content", [None, "{bad", ""])
def test_event_that_cannot_be_read_is_refused(
    content: str | None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    event = tmp_path / "event.json"
    if content is not None:
        event.write_text(content)

    status = run("--event", str(event))

    shown = capfd.readouterr()
    assert status == 1
    assert shown.out == ""
    assert str(event) in shown.err


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_timeout_must_be_a_time(seconds: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        run("-e", "-", "--timeout", seconds)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_stops_everything(number: signal.Signals, status: int, tmp_path: Path) -> None:
    pids_file, event = tmp_path / "pids", tmp_path / "event.json"
    event.write_text(json.dumps({"pids": str(pids_file), "seconds": 60}))
    program = (
        "import sys; from runtime import cli; from runtime.commands import invoke\n"
        "invoke.HANDLER = 'tests.runtime.handlers.sleeps'\n"
        f"sys.exit(cli.main(['invoke', '-e', {str(event)!r}]))"
    )

    with subprocess.Popen([sys.executable, "-c", program], cwd=PROJECT) as process:
        assert wait_until(pids_file.exists)
        # The worker has looked for a ComfyUI, in vain: from then on it unlinks its socket itself.
        assert wait_until(lambda: worker_status().state is State.INACTIVE)
        process.send_signal(number)
        ended = process.wait(30)

    assert ended == status
    pids = [int(pid) for pid in pids_file.read_text().split()]
    # What is killed along with its leader may take a moment longer to be gone.
    assert wait_until(lambda: not any(is_running(pid) for pid in pids))
    assert not (tmp_path / "w" / SOCKET_NAME).exists()
