"""Looks at ComfyUI's device from inside its process, and says on stdout what it finds.

runtime/worker/inside_comfyui.py loads this file when ComfyUI starts its executor, or when ComfyUI's
start has failed. ComfyUI's Python runs it, so it imports nothing of this project. PyTorch and its
CUDA context are there already, so it takes milliseconds, and no memory that ComfyUI would not take.

The line is read by runtime/worker/start_reports.py. It decides nothing: whether the device is fit
for jobs is decided in runtime/worker/device_fault.py.
"""

import json
import os
import sys
from typing import Any

_MATRIX = 64
_MAX_MESSAGE = 500


def report(command: list[str]) -> None:
    """Print one line about the device, if ComfyUI has imported PyTorch.

    `command` is main.py with its arguments.
    """
    if torch := sys.modules.get("torch"):
        # At once, and past ComfyUI's own log.
        os.write(1, f"[device] {json.dumps(look(torch, _kind(command)))}\n".encode())


def look(torch: Any, kind: str) -> dict[str, Any]:
    """The facts of `Device` in handler/start_report.py, but for the driver."""
    facts: dict[str, Any] = {
        "kind": kind,
        "name": "",
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "rocm": getattr(torch.version, "hip", None) or "",
        "capability": "",
        "kernels": [],
        "free_bytes": None,
        "total_bytes": None,
        "problem": "",
    }
    try:
        if kind == "cuda":
            # Raises what `is_available` would hide.
            torch.cuda.init()
            facts["name"] = torch.cuda.get_device_name()
            facts["capability"] = "{}.{}".format(*torch.cuda.get_device_capability())
            facts["kernels"] = torch.cuda.get_arch_list()
            facts["free_bytes"], facts["total_bytes"] = torch.cuda.mem_get_info()
        facts["problem"] = _multiply(torch, kind)
    except torch.cuda.OutOfMemoryError:
        # Other programs fill the memory: the device works.
        pass
    except Exception as error:
        text = " ".join(str(error).split())[:_MAX_MESSAGE]
        facts["problem"] = f"{type(error).__name__}: {text}"
    return facts


def _multiply(torch: Any, kind: str) -> str:
    """What is wrong with a product of two matrices; '' when it is right."""
    ones = torch.ones((_MATRIX, _MATRIX), device=kind)
    # `item` waits for the device, and raises what an earlier kernel has left behind.
    total = (ones @ ones).sum().item()
    return "" if total == _MATRIX**3 else f"a product of matrices sums to {total}"


def _kind(command: list[str]) -> str:
    """The type of ComfyUI's device; where ComfyUI does not get to know it, the GPU it looks for."""
    if "--cpu" in command:
        return "cpu"
    try:
        kind: str = sys.modules["comfy.model_management"].get_torch_device().type
    except Exception:
        return "cuda"
    return kind
