"""The lock files of infra/locks, against pyproject.toml: `make lock` writes them."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from handler.settings import PROJECT
from runtime.installation.pins import Pin, read_pins
from runtime.installation.pytorch import OF_PYPI, PACKAGES

PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())
EXTRAS = PYPROJECT["project"]["optional-dependencies"]
HANDLER = [*PYPROJECT["project"]["dependencies"], *EXTRAS["image"]]
REQUIRED = {
    "comfyui": PYPROJECT["dependency-groups"]["comfyui"],
    "handler": HANDLER,
    "local": [*HANDLER, *(pin for pin in EXTRAS["local"] if pin != "lambda-comfyui[image]")],
}


def pins_of(name: str) -> dict[str, Pin]:
    pins = read_pins(PROJECT / "infra" / "locks" / f"{name}.txt")
    assert len({pin.name for pin in pins}) == len(pins), "a package has two versions"
    return {pin.name: pin for pin in pins}


@pytest.mark.parametrize("name", REQUIRED)
def test_lock_meets_each_requirement(name: str) -> None:
    pins = pins_of(name)

    for required in map(Requirement, REQUIRED[name]):
        version = pins[canonicalize_name(required.name)].version
        assert required.specifier.contains(version), f"{required}, but {version}: run `make lock`"


@pytest.mark.parametrize("name", REQUIRED)
def test_lock_has_nothing_that_is_no_longer_required(name: str) -> None:
    required = {canonicalize_name(Requirement(line).name) for line in REQUIRED[name]}

    named = {p.name for p in pins_of(name).values() if "lambda-comfyui" in p.entry}

    assert named == required, "run `make lock`"


@pytest.mark.parametrize("name", REQUIRED)
def test_each_package_has_hashes(name: str) -> None:
    for pin in pins_of(name).values():
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", pin.entry), pin


def test_workstation_has_the_versions_of_the_image() -> None:
    image, local = pins_of("handler"), pins_of("local")

    assert {name: local[name].version for name in image} == {
        name: pin.version for name, pin in image.items()
    }


def test_locked_pytorch_is_the_build_that_its_name_says() -> None:
    pins = pins_of("comfyui")
    major, minor = pins["cuda-toolkit"].version.split(".")[:2]

    assert f"cu{major}{minor}" == OF_PYPI
    assert pins.keys() >= set(PACKAGES)
