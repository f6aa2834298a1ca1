"""Which exceptions of a node say that memory was short, or that the machine is broken.

Decided by exception classes and error numbers; by a message only where torch, a driver or a library
has nothing better, and only by the words that it begins with: a message may quote a caller's text.
The exceptions come from ComfyUI's message `execution_error`, its causes from
runtime/worker/inside_executor.py. What an error becomes is decided in handler/node_failure.py.
"""

import errno
import os
import re
from dataclasses import dataclass, replace
from typing import Any

_OUT_OF_MEMORY_CLASS = "OutOfMemoryError"
# Of runtime/worker/inside_gate.py.
_MISSING_MODEL_CLASS = "ModelUnavailable"
_UNKNOWN_MODEL_CLASS = "ModelNotFound"
# torch raises OutOfMemoryError on a GPU; a plain RuntimeError where a library of CUDA, or on a CPU
# its own allocator, has no memory.
_OUT_OF_MEMORY = re.compile(
    r"(CUDA|HIP)( error:)? out of memory|Allocation on device"
    r"|\[enforce fail at alloc_cpu|DefaultCPUAllocator: "
    r"|.*CUBLAS_STATUS_ALLOC_FAILED"
)
# How torch, CUDA's libraries and the driver report a device that is lost, broken or unsuitable:
# https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html
_DEVICE_FAULT = re.compile(
    r"(CUDA|HIP|NCCL|cuDNN|CUDNN|cuBLAS|cuFFT|NVML|Triton)( driver| kernel)? (unknown )?error\b"
    r"|Triton Error \[CUDA\]|(cuDNN|CUDNN|CUBLAS|CUSOLVER|CUSPARSE)_STATUS_|cuFFT error"
    r"|no kernel image is available|Found no NVIDIA driver|No (CUDA|HIP) GPUs are available"
    r"|The NVIDIA driver on your system|CUDA driver (version|initialization)|CUDA initialization"
    r"|Unexpected error from cuda|GPU is lost|[Uu]ncorrectable ECC|[Dd]evice (is )?lost"
    r"|Attempting to deserialize object on a CUDA device"
)
_DEVICE_FAULT_CLASSES = frozenset({"torch.AcceleratorError", "torch._C.AcceleratorError"})

_MACHINE_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENOMEM})
_MACHINE_ERRNO_TEXT = "|".join(re.escape(os.strerror(number)) for number in _MACHINE_ERRNOS)
# What is left of an error number in the classes of other languages: Rust's "(os error 28)" in
# safetensors, SQLite's texts, and "[Errno 28]" in an exception without the attribute.
_SYSTEM_FAULT = re.compile(
    rf"\[Errno \d+\] ({_MACHINE_ERRNO_TEXT})|.*({_MACHINE_ERRNO_TEXT}) \(os error \d+\)"
    r"|database or disk is full|disk I/O error",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Cause:
    """An exception: the names of its class and base classes, its message, and its `errno`."""

    types: tuple[str, ...]
    message: str
    errno: int | None = None

    def __str__(self) -> str:
        return f"{self.types[0]}: {self.message}" if self.message else self.types[0]


def causes_in(data: dict[str, Any]) -> list[Cause]:
    """The exceptions of an `execution_error`, the outermost first; at least one.

    Where nothing has added the causes, it is the exception that ComfyUI itself names.
    """
    message = str(data["exception_message"]).strip()
    causes = [
        Cause(tuple(cause["types"]), cause["message"], cause["errno"])
        for cause in data.get("causes") or ()
    ]
    if not causes:
        return [Cause((str(data["exception_type"]),), message)]
    # ComfyUI adds advice to the message of some exceptions.
    return [replace(causes[0], message=message), *causes[1:]]


def cause_of(error: Exception) -> Cause:
    """An exception of the handler's own process."""
    types = tuple(each.__name__ for each in type(error).__mro__ if each is not object)
    return Cause(types, str(error), error.errno if isinstance(error, OSError) else None)


def is_out_of_memory(cause: Cause) -> bool:
    """Whether the device's memory, or what torch may use of the machine's, was short."""
    if any(name.rpartition(".")[2] == _OUT_OF_MEMORY_CLASS for name in cause.types):
        return True
    return _is_of_torch(cause) and bool(_OUT_OF_MEMORY.match(cause.message))


def is_missing_model(cause: Cause) -> bool:
    """Whether a model file did not reach the machine: the gate's exception says so."""
    return cause.types[0].rpartition(".")[2] == _MISSING_MODEL_CLASS


def is_unknown_model(cause: Cause) -> bool:
    """Whether the URL of a model in the request is wrong: the gate's exception says so."""
    return cause.types[0].rpartition(".")[2] == _UNKNOWN_MODEL_CLASS


def is_machine_fault(cause: Cause) -> bool:
    """Whether the exception is a fault of the machine: of its device, its disks or its memory."""
    if cause.errno in _MACHINE_ERRNOS or "MemoryError" in cause.types:
        return True
    if is_out_of_memory(cause):
        return False
    if not _DEVICE_FAULT_CLASSES.isdisjoint(cause.types):
        return True
    return bool(
        (_is_of_torch(cause) and _DEVICE_FAULT.match(cause.message))
        or _SYSTEM_FAULT.match(cause.message)
    )


def _is_of_torch(cause: Cause) -> bool:
    """Whether torch may have written the message: a plain `Exception` is what nodes wrap it in."""
    outermost = cause.types[0]
    return "RuntimeError" in cause.types or outermost == "Exception" or outermost[:6] == "torch."
