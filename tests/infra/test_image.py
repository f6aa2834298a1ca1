"""The image's files, as far as they can be tried without Docker."""

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import packaging
import pytest

from handler.settings import PROJECT
from runtime.commands import extension
from runtime.installation.pins import read_pins
from tests.infra.template import variables

DOCKER = PROJECT / "infra" / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
BOTTLEROCKET = "/x86_64-bottlerocket-linux-gnu/sys-root/usr/lib/nvidia"


def image_environment() -> dict[str, str]:
    (block,) = re.findall(r"^ENV (PATH=.*?[^\\])$", DOCKERFILE, re.MULTILINE | re.DOTALL)
    pairs = re.findall(r'([A-Z0-9_]+)=("[^"]*"|\S+)', block)
    return {name: value.strip('"') for name, value in pairs}


def test_image_and_template_set_the_same_places() -> None:
    image = image_environment()
    both = variables().keys() & image.keys()

    assert {"HOME", "COMFYUI_DATA_DIR", "WORKER_DIR", "HF_HOME"} <= both
    assert {name: image[name] for name in both} == {name: variables()[name] for name in both}


def test_driver_libraries_are_found() -> None:
    assert BOTTLEROCKET in image_environment()["LD_LIBRARY_PATH"].split(":")
    assert image_environment()["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility,video"


def test_copied_files_exist_and_reach_the_build() -> None:
    copied = {
        source
        for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE)
        if "--from" not in line
        for source in line.split()[:-1]
        if not source.startswith("--")
    }
    sent = re.findall(r"^!(\S+)$", (PROJECT / ".dockerignore").read_text(), re.MULTILINE)

    assert all((PROJECT / source).exists() for source in copied)
    assert {source.partition("/")[0] for source in copied} == set(sent)


def test_installer_runs_with_the_files_of_its_stage(tmp_path: Path) -> None:
    """Docker builds that stage again only if one of them changes: a forgotten one fails here."""
    stage = DOCKERFILE.partition("AS comfyui")[2].partition("\nFROM ")[0]
    for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", stage, re.MULTILINE):
        for source in sources.split():
            (tmp_path / source).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (PROJECT / source).is_dir() else shutil.copy
            copy(PROJECT / source, tmp_path / source)
    # What Debian's python3-packaging brings.
    shutil.copytree(Path(packaging.__file__).parent, tmp_path / "packaging")
    (tmp_path / "requirements.txt").write_text("av>=14\nno-pin>=1\n")

    # -S: the editable installation of this project must not fill the gaps.
    done = subprocess.run(
        [
            sys.executable,
            "-S",
            "-c",
            "from runtime.commands import install\n"
            "from runtime.installation.requirements import needs_of\n"
            "pins = install.read_pins(install.LOCK)\n"
            "print(len(pins), needs_of(install.Path('requirements.txt'), pins).own)",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    pins = read_pins(PROJECT / "infra" / "locks" / "comfyui.txt")
    assert done.stdout.strip() == f"{len(pins)} ('no-pin>=1',)"


def test_custom_nodes_are_installed_with_the_files_of_their_stage(tmp_path: Path) -> None:
    """The lock file of the image names none, so nothing is fetched."""
    stages = DOCKERFILE.partition("AS comfyui")[2].partition("AS emulator")[0]
    for sources, target in re.findall(r"^COPY (?!--from)(.*) (\S+)$", stages, re.MULTILINE):
        for source in sources.split():
            if (PROJECT / source).is_dir():
                shutil.copytree(PROJECT / source, tmp_path / target)
            else:
                (tmp_path / target).mkdir(parents=True, exist_ok=True)
                shutil.copy(PROJECT / source, tmp_path / target)
    (program,) = re.findall(r'python -c "(.*runtime\.custom_nodes.*)" /opt/comfyui', stages)
    (tmp_path / "home" / "ComfyUI").mkdir(parents=True)

    # -S: the editable installation of this project must not fill the gaps.
    done = subprocess.run(
        [sys.executable, "-S", "-c", program, tmp_path / "home"],
        cwd=tmp_path,
        env={"PYTHONPATH": sysconfig.get_path("purelib")},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "0 of the lock file" in done.stderr


def test_environment_of_comfyui_keeps_pip_until_the_custom_nodes_are_there() -> None:
    uses = [
        line
        for line in DOCKERFILE.splitlines()
        if "/opt/comfyui/venv/bin/python -m pip" in line or "runtime.custom_nodes" in line
    ]

    assert ["uninstall" in line for line in uses] == [False, True]
    assert "COPY --from=custom_nodes /opt/comfyui /opt/comfyui\n" in DOCKERFILE


def test_handler_environment_has_what_serve_needs() -> None:
    names = {pin.name for pin in read_pins(PROJECT / "infra" / "locks" / "handler.txt")}

    assert {"boto3", "starlette", "awslambdaric", "uvicorn"} <= names
    assert "rich" not in names


def test_extension_registers_under_the_name_of_its_file() -> None:
    assert f"/opt/extensions/{extension.NAME}\n" in DOCKERFILE


def test_last_target_is_lambda_and_code_is_its_last_layer() -> None:
    """A build without --target is the function's image, and a release changes the last layer."""
    for target, layers in re.findall(
        r"^FROM runtime AS (\w+)$(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL
    ):
        copies = re.findall(r"^COPY .*$", layers, re.MULTILINE)
        assert copies[-1] == "COPY --from=code /var/task /var/task", target

    assert re.findall(r"^FROM .* AS (\w+)$", DOCKERFILE, re.MULTILINE)[-2:] == ["host", "lambda"]


@pytest.mark.parametrize(
    ("api", "expected"),
    [("127.0.0.1:9001", "started directly"), ("", "aws-lambda-rie: not found")],
    ids=["in Lambda", "elsewhere"],
)
def test_entrypoint_uses_the_emulator_only_outside_lambda(api: str, expected: str) -> None:
    if Path("/usr/local/bin/aws-lambda-rie").exists():
        pytest.skip("the emulator is installed on this machine")

    done = subprocess.run(
        ["sh", DOCKER / "entrypoint", "echo", "started directly"],
        env={"AWS_LAMBDA_RUNTIME_API": api, "PATH": "/usr/bin:/bin", "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert expected in done.stdout + done.stderr
