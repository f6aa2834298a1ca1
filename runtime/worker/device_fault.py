"""Whether ComfyUI's device can run jobs, from what a start has shown; if not, what to do.

A GPU that fails a small product of matrices will fail every job, and another start in the same
container finds the same GPU and driver. Which PyTorch fits which driver is decided in
runtime/installation/driver.py.
"""

import re

from handler.start_report import Device
from runtime.installation.driver import build_for, driver_problem

_ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")
# cuBLAS reports a full memory in its own words.
_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED")
_LOW_BYTES = 1 << 30
_NEW_CONTAINER = "Start a new container; if the fault comes again, on another machine."


def device_fault(device: Device) -> str:
    """Why no job can run on this device, and what to do; '' when jobs can run."""
    if device.kind != "cuda" or not device.problem:
        return ""
    if not device.name:
        return _missing(device)
    if _is_full(device):
        return ""
    gpu = f"the GPU {device.name} of compute capability {device.capability}"
    if not has_kernels(device.capability, device.kernels):
        built_for = ", ".join(device.kernels)
        return (
            f"PyTorch {device.torch} has no kernels for {gpu}: it is built for {built_for}."
            f" {_other_build(device)}"
        )
    return f"{gpu} does not compute: {device.problem}. {_NEW_CONTAINER}"


def has_kernels(capability: str, kernels: tuple[str, ...]) -> bool:
    """Whether a GPU runs code that was built for these architectures; True if that is not known.

    Binary code (`sm_86`) runs on the same major version from its minor version on. PTX
    (`compute_86`) is compiled for every later GPU. Code with the suffix `a` runs on its own
    architecture alone, with `f` in its family, for which the rule of binary code is taken:
    https://docs.nvidia.com/cuda/cuda-c-programming-guide/#compute-capabilities.
    """
    architectures = [found for name in kernels if (found := _ARCHITECTURE.fullmatch(name))]
    if not capability or not architectures:
        return True
    major, minor = (int(part) for part in capability.split("."))
    for kind, built_major, built_minor, suffix in (each.groups() for each in architectures):
        built = (int(built_major), int(built_minor))
        if suffix == "a":
            runs = built == (major, minor)
        elif kind == "compute" and not suffix:
            runs = built <= (major, minor)
        else:
            runs = built[0] == major and built[1] <= minor
        if runs:
            return True
    return False


def _is_full(device: Device) -> bool:
    """Whether the GPU only has too little memory left: other programs use it, and may end.

    A GPU whose memory does not even hold a CUDA context does not say how much is free.
    """
    is_low = device.free_bytes is None or device.free_bytes < _LOW_BYTES
    return is_low and any(words in device.problem for words in _MEMORY)


def _missing(device: Device) -> str:
    """Why PyTorch does not find the GPU whose device file is there."""
    if device.driver and not device.rocm:
        problem = driver_problem(device.driver, device.cuda or None)
        if problem:
            return problem
    if not device.cuda and not device.rocm:
        return (
            f"PyTorch {device.torch} is a build for the CPU, and this machine has a GPU. Run"
            " `python -m runtime install --torch` with a build for its driver, or set"
            " COMFYUI_ARGS=--cpu"
        )
    return f"PyTorch {device.torch} finds no GPU: {device.problem}. {_NEW_CONTAINER}"


def _other_build(device: Device) -> str:
    build = build_for(device.driver) if device.driver else None
    if build is None:
        return "Install a build of PyTorch that has them"
    return f"Run `python -m runtime install --torch {build}`, or update the driver for a newer one"
