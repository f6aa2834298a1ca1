"""What must be in place before torch is imported: the allocator of GPU memory, and comfy-aimdo.

runtime/worker/inside_comfyui.py loads this file. ComfyUI's Python runs it, so it imports nothing of
this project. It never touches CUDA.

torch takes its allocator from the environment while it is imported. ComfyUI's cuda_malloc.py sets
it: too late where torch was imported beforehand, and at each start it runs `nvidia-smi -L` to
choose. Here its rule is followed without that, and the choice is an argument of ComfyUI.
"""

import ast
import contextlib
import importlib
import importlib.util
import logging
import os
import re
import runpy
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ASYNC, NATIVE = "--cuda-malloc", "--disable-cuda-malloc"
# One file for each GPU; its line "Model:" has the name that `nvidia-smi -L` prints.
DRIVER_FILES = Path("/proc/driver/nvidia/gpus")
_VARIABLE = "PYTORCH_CUDA_ALLOC_CONF"
_ASYNC_BACKEND = "backend:cudaMallocAsync"
_SMI_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class _Rule:
    """What the cuda_malloc.py of one ComfyUI goes by."""

    # Parts of the names of GPUs that cannot have the asynchronous allocator.
    excluded: frozenset[str]
    # Newer ones exclude none where torch was built for CUDA 13, which has dropped most of them.
    asks_for_cuda_version: bool


def allocator_for(command: Sequence[str], driver_files: Path = DRIVER_FILES) -> list[str]:
    """The argument for the allocator that ComfyUI in the current folder would choose.

    `--cuda-malloc` or `--disable-cuda-malloc`. None if the command has one of them, or the rule of
    that ComfyUI cannot be read: then ComfyUI chooses.
    """
    rule = _rule_in(Path("cuda_malloc.py"))
    if rule is None or ASYNC in command or NATIVE in command:
        return []
    cuda = _cuda_version()
    if cuda is None or _tunes_by_itself(command):
        return [NATIVE]
    if rule.asks_for_cuda_version and cuda >= 130:
        return [ASYNC]
    is_excluded = any(
        "NVIDIA" in name and part in name
        for name in _gpu_names(driver_files)
        for part in rule.excluded
    )
    return [NATIVE if is_excluded else ASYNC]


def import_torch(command: Sequence[str]) -> None:
    """Import torch as a ComfyUI with this command has it; without one, do nothing.

    The environment stays as it was: ComfyUI adds the allocator to it by itself.
    """
    _load_aimdo()
    before = os.environ.get(_VARIABLE)
    if ASYNC in command:
        os.environ[_VARIABLE] = f"{before},{_ASYNC_BACKEND}" if before else _ASYNC_BACKEND
    with contextlib.suppress(Exception):
        importlib.import_module("torch")
    if before is None:
        os.environ.pop(_VARIABLE, None)
    else:
        os.environ[_VARIABLE] = before


def _rule_in(file: Path) -> _Rule | None:
    """None if the file is not as expected."""
    try:
        source = file.read_text()
        for statement in ast.parse(source).body:
            match statement:
                case ast.Assign(targets=[ast.Name(id="blacklist")], value=value):
                    names = frozenset(map(str, ast.literal_eval(value)))
                    return _Rule(names, "get_raw_cuda_version" in source)
    except (OSError, ValueError, TypeError, SyntaxError):
        pass
    return None


def _cuda_version() -> int | None:
    """That of torch's build: 128 for 12.8, 0 if unknown; None for one that cannot use CUDA."""
    spec = importlib.util.find_spec("torch")
    for folder in (spec and spec.submodule_search_locations) or ():
        with contextlib.suppress(Exception):
            version = str(runpy.run_path(str(Path(folder) / "version.py"))["__version__"])
            if int(version[0]) >= 2 and "+cu" in version:
                digits = re.search(r"\+cu(\d+)", version)
                return int(digits[1]) if digits else 0
    return None


def _tunes_by_itself(command: Sequence[str]) -> bool:
    """Whether `--fast` switches autotuning on: by its name, or by naming nothing."""
    if "--fast" not in command:
        return False
    values = []
    for word in command[command.index("--fast") + 1 :]:
        if word.startswith("-"):
            break
        values.append(word)
    return not values or "autotune" in values


def _gpu_names(driver_files: Path) -> list[str]:
    """The models of the GPUs; where the driver has no files (WSL), nvidia-smi is asked."""
    with contextlib.suppress(OSError):
        texts = [file.read_text() for file in driver_files.glob("*/information")]
        if names := [name for text in texts for name in re.findall(r"Model:\s*(.+)", text)]:
            return names
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        line = ["nvidia-smi", "-L"]
        return subprocess.check_output(line, text=True, timeout=_SMI_TIMEOUT_S).splitlines()
    return []


def _load_aimdo() -> None:
    """Load the library of comfy-aimdo, where it is installed, as main.py does from ComfyUI 0.16 on.

    It does nothing to a GPU before ComfyUI calls its `init_devices`.
    """
    # Without a handler, what it logs would set up logging, and ComfyUI would log each line twice.
    handler = logging.NullHandler()
    logging.root.addHandler(handler)
    with contextlib.suppress(Exception):
        importlib.import_module("comfy_aimdo.control").init()
    logging.root.removeHandler(handler)
