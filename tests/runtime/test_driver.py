"""Which build of PyTorch fits which driver of NVIDIA's."""

from pathlib import Path

import pytest

from runtime.installation import driver
from runtime.installation.driver import build_for, driver_problem, installed_driver

PROPRIETARY = """\
NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
"""
OPEN = """\
NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (builder@host)
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
"""


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that stands in for nvidia-smi, on a machine whose kernel module tells nothing."""
    monkeypatch.setattr(driver, "KERNEL_MODULE", tmp_path / "absent")
    monkeypatch.setenv("PATH", str(tmp_path))
    program = tmp_path / "nvidia-smi"
    program.touch(mode=0o755)
    return program


@pytest.mark.parametrize(
    ("version", "build"),
    [
        ("580", "cu130"),
        ("580.65.06", "cu130"),
        ("595.10", "cu130"),
        ("575.57.08", "cu128"),
        ("570.26", "cu128"),
        ("570.25", "cu126"),
        ("525.60.13", "cu126"),
        ("525.60.11", None),
        ("470.256.02", None),
    ],
)
def test_newest_build_that_the_driver_runs_is_chosen(version: str, build: str | None) -> None:
    assert build_for(version) == build


@pytest.mark.parametrize(
    ("version", "cuda"),
    [("580.65.06", "13.0"), ("595.10", "13.2"), ("595.10", "12.6"), ("535.183.01", "12.8")],
)
def test_driver_from_the_minimum_of_the_major_version_on_fits(version: str, cuda: str) -> None:
    assert driver_problem(version, cuda) is None


def test_cuda_without_a_known_minimum_is_left_to_pytorch() -> None:
    assert driver_problem("595.10", "14.0") is None


@pytest.mark.parametrize(
    ("version", "cuda", "message"),
    [
        (
            "570.133.20",
            "13.0",
            "PyTorch is built with CUDA 13.0, which needs the NVIDIA driver 580 or newer, and the"
            " driver is 570.133.20. Run `python -m runtime install --torch cu128`, or update the"
            " driver.",
        ),
        (
            "470.256.02",
            "12.6",
            "PyTorch is built with CUDA 12.6, which needs the NVIDIA driver 525.60.13 or newer, and"
            " the driver is 470.256.02. Update the driver to 525.60.13 or newer.",
        ),
        (
            "580.65.06",
            None,
            "PyTorch is a build for the CPU, and the NVIDIA driver is 580.65.06."
            " Run `python -m runtime install --torch cu130`.",
        ),
        (
            "440.33",
            "11.8",
            "PyTorch is built with CUDA 11.8, which needs the NVIDIA driver 450.80.02 or newer, and"
            " the driver is 440.33. Update the driver to 525.60.13 or newer.",
        ),
    ],
)
def test_pytorch_that_does_not_fit_is_told_with_the_fix(
    version: str, cuda: str | None, message: str
) -> None:
    assert driver_problem(version, cuda) == message


@pytest.mark.parametrize(
    ("text", "version"), [(PROPRIETARY, "535.183.01"), (OPEN, "580.65.06"), ("nonsense", None)]
)
def test_kernel_module_tells_its_version(
    text: str, version: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "version"
    module.write_text(text)
    monkeypatch.setattr(driver, "KERNEL_MODULE", module)

    assert installed_driver() == version


@pytest.mark.parametrize(
    ("script", "version"),
    [
        ("echo 570.133.20; echo 570.133.20", "570.133.20"),
        ("echo NVIDIA-SMI has failed; exit 9", None),
        ("echo 570.133.20; exit 9", None),
        ("echo No devices were found", None),
    ],
    ids=["two GPUs", "no driver", "fails", "no GPU"],
)
def test_nvidia_smi_is_asked_where_the_kernel_module_is_hidden(
    script: str, version: str | None, nvidia_smi: Path
) -> None:
    nvidia_smi.write_text(f"#!/bin/sh\n{script}\n")

    assert installed_driver() == version


def test_machine_without_a_driver_has_none(nvidia_smi: Path) -> None:
    nvidia_smi.unlink()

    assert installed_driver() is None
