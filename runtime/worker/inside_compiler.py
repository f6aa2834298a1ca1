"""Says on stdout what compiled code depends on inside ComfyUI's process: PyTorch and the device.

runtime/worker/inside_comfyui.py loads this file. ComfyUI's Python runs it, so it imports nothing of
this project. The line is read by runtime/worker/compile_key.py.
"""

import json
import os
import sys
from importlib import metadata
from typing import Any

# The environment variable that asks for the line.
VARIABLE = "LAMBDA_COMFYUI_REPORT_COMPILER"
# Its package for NVIDIA's GPUs, and those for AMD's.
_TRITON = ("triton", "triton-rocm", "pytorch-triton-rocm", "pytorch-triton")


def report() -> None:
    """Print one line, if it is asked for. Call it when ComfyUI has chosen its device."""
    if os.environ.get(VARIABLE) != "1":
        return
    try:
        torch = sys.modules["torch"]
        device = sys.modules["comfy.model_management"].get_torch_device()
        content = look(torch, device)
    except Exception as error:
        print(f"the cache of compiled code is not used: {type(error).__name__}: {error}")
        return
    # At once, and past ComfyUI's own log.
    os.write(1, f"[compiler] {json.dumps(content)}\n".encode())


def look(torch: Any, device: Any) -> dict[str, str]:
    """The fields of `Compiler` in runtime/worker/compile_key.py."""
    name, capability = device.type, ""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name = properties.name
        # That of an AMD GPU says more than its compute capability.
        capability = getattr(properties, "gcnArchName", "") if torch.version.hip else ""
        capability = capability or f"{properties.major}.{properties.minor}"
    return {
        "torch": torch.__version__,
        "triton": _triton_version(),
        "cuda": torch.version.cuda or "",
        "rocm": torch.version.hip or "",
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "device": name,
        "capability": capability,
    }


def _triton_version() -> str:
    """Without importing it, which takes long; '' if it is not installed."""
    for name in _TRITON:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""
