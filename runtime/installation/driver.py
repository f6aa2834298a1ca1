"""Which builds of PyTorch an NVIDIA driver can run, and what to install if it cannot.

A program that is built with a CUDA runs on each driver from a minimum on, which is the same for all
minor versions of that CUDA: "Minor Version Compatibility",
https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html. The driver that
was released with a CUDA is in the table "CUDA Toolkit and Corresponding Driver Versions",
https://docs.nvidia.com/cuda/cuda-toolkit-release-notes/.
"""

import re
import subprocess
from pathlib import Path

# CUDA's major version -> its lowest driver for Linux.
LOWEST_DRIVER = {
    13: (580,),
    12: (525, 60, 13),
    11: (450, 80, 2),
}
# The build for a driver: the first one whose driver is not newer. Drivers know Blackwell GPUs from
# 570.26 on, which was released with CUDA 12.8; cu126 has no kernels for them.
BUILDS = (
    ((580,), "cu130"),
    ((570, 26), "cu128"),
    ((525, 60, 13), "cu126"),
)
KERNEL_MODULE = Path("/proc/driver/nvidia/version")
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
NVIDIA_SMI_TIMEOUT_S = 30


def installed_driver() -> str | None:
    """The version of this machine's NVIDIA driver, such as `570.133.20`. None if there is none.

    The kernel module tells it at once. A container may see nvidia-smi alone.
    """
    try:
        return _driver_of_kernel_module(KERNEL_MODULE.read_text())
    except OSError:
        return _driver_of_nvidia_smi()


def build_for(driver: str) -> str | None:
    """The newest build of PyTorch for a driver: `cu130`, `cu128` or `cu126`. None if it is too old.

    Raises ValueError if `driver` is not a version.
    """
    version = _parts(driver)
    return next((build for lowest, build in BUILDS if version >= lowest), None)


def driver_problem(driver: str, cuda: str | None) -> str | None:
    """Why PyTorch, built with `cuda`, cannot use the GPU of a machine with `driver`, and the fix.

    `cuda` is `torch.version.cuda`, such as `13.0`, or None for a build for the CPU. Returns None if
    the two fit. It does not know of a forward compatibility package of NVIDIA's (cuda-compat), with
    which a data center GPU runs a newer CUDA: ask only if PyTorch itself finds no GPU.

    Raises ValueError if `driver` or `cuda` is not a version.
    """
    build = build_for(driver)
    fix = (
        f"Run `python -m runtime install --torch {build}`"
        if build
        else f"Update the driver to {_text(BUILDS[-1][0])} or newer"
    )
    if cuda is None:
        return f"PyTorch is a build for the CPU, and the NVIDIA driver is {driver}. {fix}."
    lowest = LOWEST_DRIVER.get(_parts(cuda)[0])
    if lowest is None or _parts(driver) >= lowest:
        return None
    return (
        f"PyTorch is built with CUDA {cuda}, which needs the NVIDIA driver {_text(lowest)} or"
        f" newer, and the driver is {driver}. {fix}{', or update the driver' if build else ''}."
    )


def _driver_of_kernel_module(text: str) -> str | None:
    # NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024
    # NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (…)
    found = re.search(r"Kernel Module\D.*?\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return found[1] if found else None


def _driver_of_nvidia_smi() -> str | None:
    try:
        process = subprocess.run(
            NVIDIA_SMI,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=NVIDIA_SMI_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    # One line for each GPU. Without a driver, it prints a message to stdout.
    found = re.match(r"\d+\.\d+(?:\.\d+)?$", process.stdout, re.MULTILINE)
    return found[0] if found and process.returncode == 0 else None


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _text(version: tuple[int, ...]) -> str:
    # NVIDIA writes the third number with two digits: 450.80.02.
    return ".".join(f"{part:02d}" for part in version)
