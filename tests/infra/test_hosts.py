"""infra/hosts: the service of a GPU machine of one's own, and the start of a rented one."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from handler.settings import PROJECT, Settings
from tests.processes import free_ports, processes_with, wait_until
from tests.workflows import image

HOSTS = PROJECT / "infra" / "hosts"
UNIT = HOSTS / "lambda-comfyui.service"
SCRIPT = HOSTS / "on-start.sh"
TARGETS = Path("/usr/lib/systemd/system")
SHELLCHECK = Path(sys.executable).with_name("shellcheck")


def unit_values(key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", UNIT.read_text(), re.MULTILINE)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs the package systemd")
def test_systemd_accepts_the_unit_where_the_project_is_installed(tmp_path: Path) -> None:
    nvidia = ("usr/bin/nvidia-modprobe", "usr/bin/nvidia-smi")
    for program in ("opt/lambda-comfyui/.venv/bin/lambda-comfyui", *nvidia):
        (tmp_path / program).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    shutil.copytree(
        TARGETS,
        tmp_path / "usr/lib/systemd/system",
        symlinks=True,
        ignore=lambda _, names: [name for name in names if not name.endswith(".target")],
    )
    (tmp_path / "etc/systemd/system").mkdir(parents=True)
    shutil.copy(UNIT, tmp_path / "etc/systemd/system")

    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", f"--root={tmp_path}", UNIT.name],
        capture_output=True,
        text=True,
        check=False,
    )

    # A key that systemd does not know is a line, and no failure.
    assert (done.returncode, done.stderr) == (0, "")


def test_service_stops_later_than_its_jobs_may_end() -> None:
    environment = dict(item.split("=", 1) for item in unit_values("Environment"))
    (stop_s,) = unit_values("TimeoutStopSec")

    assert float(stop_s) > Settings.from_env(environment).serve_grace_s


def test_service_is_not_restarted_on_an_unfit_machine_or_with_invalid_settings() -> None:
    assert unit_values("Restart") == ["on-failure"]
    assert unit_values("RestartPreventExitStatus") == ["2 3"]


def test_every_variable_of_the_service_is_a_setting() -> None:
    known = {item.metadata["env"] for item in fields(Settings)}
    example = (HOSTS / "lambda-comfyui.env").read_text()
    named = {item.split("=")[0] for item in unit_values("Environment")}
    named |= set(re.findall(r"^#([A-Z_0-9]+)=", example, re.MULTILINE))

    assert named - known == {"HOME", "AWS_DEFAULT_REGION"}


def test_shellcheck_finds_nothing_in_the_script() -> None:
    done = subprocess.run([SHELLCHECK, SCRIPT], capture_output=True, text=True, check=False)

    assert done.stdout == ""


class Host:
    """A rented machine on which the script runs: its folders, its processes and its output."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            "WORKSPACE_DIR": str(folder),
            "LOG_DIR": str(folder / "log"),
            "PROJECT_DIR": str(folder / "project"),
        }
        self._output = folder / "output"

    def install(self, program: str) -> None:
        """Put a program in the place of the installed project."""
        path = self.folder / "project/.venv/bin/lambda-comfyui"
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/bash\n{program}\n")
        path.chmod(0o755)

    def start(self, **variables: str) -> None:
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [SCRIPT],
                env={**os.environ, **self.environment, **variables},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def run(self, **variables: str) -> int:
        self.start(**variables)
        return self.process.wait(30)

    def processes(self) -> list[int]:
        return processes_with(f"WORKSPACE_DIR={self.folder}")

    def output(self) -> str:
        return self._output.read_text()

    def log(self, name: str) -> str:
        return (self.folder / "log" / name).read_text()

    def says(self, text: str) -> bool:
        return wait_until(lambda: text in self.output())

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(40)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    for pid in host.processes():
        os.kill(pid, signal.SIGKILL)
    host.process.wait(10)


SERVES = '[[ $1 == serve ]] || exit 0\necho "serving with $PPID"\n'


def test_serve_is_started_again_after_a_failure_with_a_pause(host: Host) -> None:
    host.install(SERVES + "echo run >> runs\n(($(wc -l < runs) > 1)) || exit 1\nexit 0")

    assert host.run() == 0

    assert "serve ended with status 1 and starts again in 1 s" in host.output()
    assert (host.folder / "project/runs").read_text() == "run\nrun\n"


def test_unfit_machine_ends_with_words(host: Host) -> None:
    host.install(SERVES + "exit 3")

    assert host.run() == 3

    assert "this machine is unfit for jobs" in host.output()
    assert "Destroy this instance and rent another" in host.log("on-start.log")


def test_invalid_settings_end_the_script(host: Host) -> None:
    host.install(SERVES + "exit 2")

    assert host.run() == 2

    assert "serve refuses its settings" in host.output()


def test_failed_installation_is_named(host: Host) -> None:
    host.install("[[ $1 != install ]]")

    assert host.run() == 1

    assert "on-start: cannot install ComfyUI" in host.output()


def test_sigterm_reaches_serve_and_ends_the_script(host: Host) -> None:
    # The trap comes before the line that the test waits for.
    host.install("trap 'echo got SIGTERM; exit 0' TERM\n" + SERVES + "sleep 60 &\nwait")
    host.start()
    assert host.says("serving with")

    assert host.stop() == 0

    assert wait_until(lambda: "got SIGTERM" in host.log("serve.log"))


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"PYWORKER_REF": "v1"}, "PYWORKER_REF is set without PYWORKER_REPO"),
        (
            {"PYWORKER_REPO": "file:///none", "API_TOKEN": "t"},
            "API_TOKEN and PYWORKER_REPO are both set",
        ),
        ({}, "set LAMBDA_COMFYUI_REPO to its git repository"),
    ],
)
def test_variables_that_do_not_suffice_are_named(
    variables: dict[str, str], message: str, host: Host
) -> None:
    assert host.run(**variables) == 2

    assert message in host.output()


@pytest.fixture
def repository(tmp_path: Path) -> Callable[[dict[str, str]], str]:
    """Makes a repository with a commit `v1` of these files, and a newer one that lacks them."""

    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.com")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path / "upstream", check=True)

    def make(files: dict[str, str]) -> str:
        (tmp_path / "upstream").mkdir()
        git("init", "--quiet", "--initial-branch=main")
        for name, text in files.items():
            (tmp_path / "upstream" / name).write_text(text)
        git("add", ".")
        git("commit", "--quiet", "--message=one")
        git("tag", "v1")
        git("rm", "--quiet", *files)
        git("commit", "--quiet", "--message=two")
        return (tmp_path / "upstream").as_uri()

    return make


def test_pyworker_that_is_not_there_is_named_without_its_password(host: Host) -> None:
    host.install(SERVES)

    assert host.run(PYWORKER_REPO="http://me:secret@127.0.0.1:9/worker") == 1

    assert "on-start: cannot clone http://…@127.0.0.1:9/worker" in host.output()
    assert "secret" not in host.output()


def test_pyworker_without_such_a_commit_is_named(
    host: Host, repository: Callable[[dict[str, str]], str]
) -> None:
    host.install(SERVES)
    url = repository({"start_server.sh": "exit 0"})

    assert host.run(PYWORKER_REPO=url, PYWORKER_REF="v9") == 1

    assert "has no branch, tag or commit v9" in host.output()


def test_repository_without_a_start_script_is_named(
    host: Host, repository: Callable[[dict[str, str]], str]
) -> None:
    host.install(SERVES)

    assert host.run(PYWORKER_REPO=repository({"start_server.sh": "exit 0"})) == 1

    assert "has neither start_server.sh nor worker.py" in host.output()


def test_pyworker_on_an_unfit_machine_stays_to_report_it(
    host: Host, repository: Callable[[dict[str, str]], str]
) -> None:
    host.install(SERVES + "exit 3")
    url = repository({"start_server.sh": "sleep 300 &"})
    log = str(host.folder / "api-wrapper.log")
    host.start(PYWORKER_REPO=url, PYWORKER_REF="v1", PYWORKER_LOG=log)

    assert host.says("this machine is unfit for jobs")
    assert host.process.poll() is None
    assert host.stop() == 3
    assert wait_until(lambda: not host.processes())


# As a PyWorker does: it waits for the line in the log, then asks for the health and sends a job.
CLIENT = """
import json, os, sys, time, urllib.request
base = "http://127.0.0.1:" + os.environ["API_PORT"]
while "BACKENDS_READY" not in open(os.environ["MODEL_LOG"]).read():
    time.sleep(0.05)
health = urllib.request.urlopen(base + "/health").status
job = urllib.request.Request(base + "/generate/sync", data=open("job.json", "rb").read())
job.add_header("Content-Type", "application/json")
answer = json.load(urllib.request.urlopen(job))
print("health", health, "job", answer["status"], flush=True)
time.sleep(300)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("comfyui")
def test_pyworker_is_in_front_of_a_real_comfyui_until_the_host_is_stopped(
    host: Host, repository: Callable[[dict[str, str]], str]
) -> None:
    host.install(f'exec "{sys.executable}" -m runtime "$@"')
    api, outside = free_ports(2)
    job = json.dumps({"input": {"workflow_json": image()}})
    # Its server outlives the start script, as that of Vast.ai's own script does.
    start = f'"{sys.executable}" client.py &'
    url = repository({"start_server.sh": start, "client.py": CLIENT, "job.json": job})
    log = host.folder / "api-wrapper.log"
    log.write_text("BACKEND_UNRECOVERABLE of an earlier run\n")

    host.start(
        PYTHONPATH=str(PROJECT),
        PYWORKER_REPO=url,
        PYWORKER_REF="v1",
        PYWORKER_LOG=str(log),
        API_PORT=str(api),
        SERVE_PORT="0",
        WORKER_DIR=str(host.folder / "worker"),
        COMFYUI_DATA_DIR=str(host.folder / "data"),
        PUBLIC_IPADDR="203.0.113.7",
        **{f"VAST_TCP_PORT_{api}": str(outside)},
    )

    assert wait_until(lambda: "health 200 job completed" in host.output(), 90), host.output()
    assert "UNRECOVERABLE" not in log.read_text()
    assert f"port {api} is 203.0.113.7:{outside} from outside" in host.log("on-start.log")
    assert "job completed" in host.log("pyworker.log")
    assert "host: ready" in host.log("serve.log")
    assert host.stop() == 0
    assert wait_until(lambda: not host.processes())
