"""The commands `serve` and `start-lambda` as processes: their lines, their answers, their end."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from handler.settings import PROJECT
from runtime import cli
from tests.aws import lambda_client, moto_client
from tests.processes import is_running, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(90),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

EXTENSION = Path(__file__).with_name("host_extension.py")


class Serving:
    """A running command: its output so far, and the port that it announced."""

    def __init__(self, folder: Path, environ: dict[str, str], *arguments: str) -> None:
        self._log = folder / "log"
        extension = [sys.executable, str(EXTENSION), str(folder / "diary"), "is plain"]
        program = (
            "import sys; from runtime import cli; from runtime.commands import serve\n"
            "from runtime.lambda_host import sqs_queue; sqs_queue.LONG_POLL_S = 1\n"
            "serve.HANDLER = 'tests.runtime.host_handlers.acts'\n"
            f"serve.extension_commands = lambda: [{extension!r}]\n"
            f"sys.exit(cli.main({list(arguments)!r}))"
        )
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program],
                cwd=PROJECT,
                env={**os.environ, **environ},
                stdout=log,
                stderr=log,
            )
        self._folder = folder

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_for_line(self, pattern: str) -> str:
        """The last group of the pattern, once the log has it."""
        assert wait_until(lambda: bool(re.search(pattern, self.log))), self.log
        line = re.search(pattern, self.log)
        assert line
        return line[line.re.groups]

    def lambda_client(self) -> Any:
        return lambda_client(int(self.wait_for_line(r"listening on http://127\.0\.0\.1:(\d+)")))

    def extension_pid(self) -> int:
        return int((self._folder / "diary").read_text().split()[1])

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(40)


Start = Callable[..., Serving]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def start(*arguments: str, **environ: str) -> Serving:
            store = {"JOBS_DB": str(tmp_path / "jobs.sqlite")}
            serving = Serving(tmp_path, store | environ, *arguments)
            stack.callback(serving.process.wait)
            stack.callback(serving.process.kill)
            return serving

        yield start


@pytest.fixture
def sqs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with moto_client(monkeypatch, "sqs") as client:
        yield client


def act(folder: Path, name: str, **action: Any) -> str:
    return json.dumps({"marks": str(folder), "name": name, **action})


def pid_of(folder: Path, name: str) -> int:
    return int((folder / f"{name}.begin").read_text().split()[0])


def test_machine_works_off_a_queue_until_it_is_stopped(
    start: Start, sqs: Any, tmp_path: Path
) -> None:
    url = sqs.create_queue(QueueName="jobs")["QueueUrl"]
    serving = start(
        *("serve", "--no-api", "--port", "0", "--queue", url),
        *("--concurrency", "2", "--grace", "20"),
    )
    release = tmp_path / "release"
    for name, until in (("a", tmp_path), ("b", release)):
        sqs.send_message(QueueUrl=url, MessageBody=act(tmp_path, name, until=str(until)))
    assert wait_until(lambda: (tmp_path / "a.end").exists() and (tmp_path / "b.begin").exists())

    serving.process.terminate()
    serving.wait_for_line("host: stopping")
    release.touch()

    assert serving.process.wait(40) == 0
    assert (tmp_path / "b.end").exists()
    counted = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    assert counted["ApproximateNumberOfMessages"] == "0"
    assert counted["ApproximateNumberOfMessagesNotVisible"] == "0"
    assert not any(is_running(pid_of(tmp_path, name)) for name in "ab")
    assert not is_running(serving.extension_pid())
    states = re.findall(r"^host: (.*)$", serving.log, re.MULTILINE)
    states = [re.sub(r"took .*|http.*?,", "…", state) for state in states]
    # The clients may be ready before the other two lines are written.
    assert sorted(states[:3]) == [
        "listening on … function lambda-comfyui, 2 at a time",
        "ready, init …",
        "taking messages from arn:aws:sqs:us-east-1:123456789012:jobs",
    ]
    assert states[3:] == ["stopping, within 20 s", "stopped"]


def test_job_that_does_not_end_within_the_grace_is_killed(
    start: Start, sqs: Any, tmp_path: Path
) -> None:
    url = sqs.create_queue(QueueName="jobs")["QueueUrl"]
    serving = start("serve", "--no-api", "--port", "0", "--queue", url, "--grace", "6")
    never = str(tmp_path / "never")
    sqs.send_message(QueueUrl=url, MessageBody=act(tmp_path, "endless", until=never))
    assert wait_until((tmp_path / "endless.begin").exists)

    status = serving.stop(signal.SIGINT)

    assert "host: jobs did not end within the grace and are killed" in serving.log
    assert status == 0
    assert not is_running(pid_of(tmp_path, "endless"))
    (message,) = sqs.receive_message(QueueUrl=url)["Messages"]
    assert json.loads(message["Body"])["name"] == "endless"


def test_killed_command_leaves_no_process(start: Start, tmp_path: Path) -> None:
    serving = start("serve", "--no-api", "--port", "0")
    client = serving.lambda_client()
    client.invoke(
        FunctionName="function", InvocationType="Event", Payload=act(tmp_path, "a", seconds=60)
    )
    assert wait_until((tmp_path / "a.begin").exists)

    serving.stop(signal.SIGKILL)
    client.close()

    pids = [pid_of(tmp_path, "a"), serving.extension_pid()]
    assert wait_until(lambda: not any(is_running(pid) for pid in pids))


def test_caller_is_answered_during_a_stop_and_the_next_one_refused(
    start: Start, tmp_path: Path
) -> None:
    serving = start("start-lambda", "--port", "0", "--grace", "20")
    client = serving.lambda_client()
    action = act(tmp_path, "a", until=str(tmp_path / "release"), do="done")
    answers: list[Any] = []

    def call() -> None:
        answer = client.invoke(FunctionName="lambda-comfyui", Payload=action)
        answers.append(json.load(answer["Payload"]))

    caller = threading.Thread(target=call)
    caller.start()
    assert wait_until((tmp_path / "a.begin").exists)

    serving.process.terminate()
    serving.wait_for_line("host: stopping")
    with pytest.raises(ClientError) as refusal:
        client.invoke(FunctionName="lambda-comfyui")
    (tmp_path / "release").touch()
    caller.join()
    client.close()

    assert serving.process.wait(40) == 0
    assert answers == ["done"]
    assert refusal.value.response["Error"]["Code"] == "ServiceException"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_events_that_the_end_of_the_host_cuts_off_run_after_its_next_start(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    serving = start("start-lambda", "--port", "0", "--grace", "6")
    client = serving.lambda_client()
    for name in "ab":
        action = act(tmp_path, name, until=str(tmp_path / "release"))
        client.invoke(FunctionName="function", InvocationType="Event", Payload=action)
    client.close()
    assert wait_until((tmp_path / "a.begin").exists)
    serving.stop(number)
    assert not (tmp_path / "a.end").exists()
    assert not (tmp_path / "b.begin").exists()

    (tmp_path / "release").touch()
    again = start("start-lambda", "--port", "0", "--grace", "6")

    assert wait_until((tmp_path / "b.end").exists)
    assert (tmp_path / "a.end").exists()
    assert again.stop() == 0


def test_endpoint_serves_the_function_of_a_template_with_its_variables_and_its_timeout(
    start: Start, tmp_path: Path
) -> None:
    template, env_vars = tmp_path / "template.yaml", tmp_path / "env.json"
    template.write_text(
        "Resources: {Mine: {Type: AWS::Serverless::Function, Properties: {Timeout: 2,"
        " Environment: {Variables: {SERVE_GRACE: 3, SERVE_CONCURRENCY: 2}}}}}"
    )
    env_vars.write_text('{"Mine": {"SERVE_GRACE": 4}}')
    serving = start(
        *("start-lambda", "--port", "0", "-t", str(template), "--env-vars", str(env_vars))
    )
    client = serving.lambda_client()

    answer = client.invoke(FunctionName="Mine", Payload=act(tmp_path, "a", seconds=60))
    client.close()
    serving.stop()

    assert "Task timed out after 2.00 seconds" in answer["Payload"].read().decode()
    assert "function Mine, 2 at a time" in serving.log
    assert "stopping, within 4 s" in serving.log


@pytest.mark.parametrize("command", ["serve", "start-lambda"])
def test_port_in_use_is_reported(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        status = cli.main([command, "--port", str(port)])

    assert status == 1
    message = f"host: cannot listen on 127.0.0.1:{port}: Address already in use (--host, --port)\n"
    assert message in capfd.readouterr().err


def test_file_that_is_no_template_is_reported_before_the_first_request(
    start: Start, tmp_path: Path
) -> None:
    folder = tmp_path / "templates"
    folder.mkdir()
    (folder / "Broken.json").write_text("{}")
    serving = start("serve", "--port", "0", "--no-api", WORKFLOW_TEMPLATES=str(folder))

    # Before the port is announced: no caller has asked for the template yet.
    line = r"host: WORKFLOW_TEMPLATES: \S+Broken.json is no template: .*\n(.*\n)*.*listening on"
    serving.wait_for_line(line)


def test_queue_that_does_not_exist_is_reported(sqs: Any, capfd: pytest.CaptureFixture[str]) -> None:
    url = sqs.meta.endpoint_url + "/123456789012/nothing"

    status = cli.main(["serve", "--port", "0", "--queue", url])

    assert status == 1
    printed = capfd.readouterr().err
    assert f"cannot use the queue {url}: get_queue_attributes: " in printed


def test_variables_are_the_defaults_of_the_arguments(
    start: Start, sqs: Any, tmp_path: Path
) -> None:
    url = sqs.create_queue(QueueName="jobs")["QueueUrl"]
    serving = start(
        *("serve", "--no-api"),
        SERVE_PORT="0",
        QUEUE_URL=url,
        SERVE_CONCURRENCY="3",
        SERVE_GRACE="3",
    )

    serving.wait_for_line("(?s:3 at a time\n.*)host: taking messages from .*:jobs")
    serving.stop()

    assert "stopping, within 3 s" in serving.log
