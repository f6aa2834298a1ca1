"""What a start of ComfyUI has shown: the device that it computes on, and its custom nodes.

The worker learns it from ComfyUI's process (runtime/worker/start_reports.py), and handlers and the
HTTP API from the worker.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """What ComfyUI computes on, as PyTorch sees it. Text that is not known is ''."""

    # As PyTorch names it: `cuda` also for AMD's GPUs, `cpu`.
    kind: str
    name: str
    # The version of PyTorch, and those of CUDA or ROCm that it was built with.
    torch: str
    cuda: str
    rocm: str
    # The version of the NVIDIA driver.
    driver: str
    # The compute capability, such as `9.0`, and the architectures that PyTorch was built for.
    capability: str
    kernels: tuple[str, ...]
    # Of the memory of the GPU.
    free_bytes: int | None
    total_bytes: int | None
    # What PyTorch has raised when it used the device, or what is wrong with its result.
    problem: str


@dataclass(frozen=True)
class FailedNode:
    """A custom node that ComfyUI could not import: its folder or file, and why."""

    name: str
    reason: str
