"""What compiled code depends on, as the name of its object in the bucket.

ComfyUI's process reports its part (runtime/worker/inside_compiler.py); the rest is that of the
machine. Code that was compiled for another name is never loaded: at best PyTorch would ignore it,
at worst it would end the process with an illegal instruction.
"""

import contextlib
import hashlib
import json
import platform
import re
from dataclasses import dataclass
from pathlib import Path

_LINE = re.compile(r"\[compiler\] (\{.*\})$")
# The names of the fields with the instructions of an x86 and of an ARM CPU.
_CPU_FLAGS = re.compile(r"^(?:flags|Features)\s*:(.*)$", re.MULTILINE)
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9.]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiler:
    """The part of ComfyUI's process. Text that does not apply is ''."""

    torch: str
    triton: str
    # The versions that PyTorch was built for.
    cuda: str
    rocm: str
    python: str
    # The name of the GPU, or `cpu`.
    device: str
    # The compute capability, such as `8.9`, or the architecture of an AMD GPU.
    capability: str


def read_compiler(line: str) -> Compiler | None:
    """What a line of ComfyUI's process says; None if it is another line."""
    if found := _LINE.search(line):
        # A custom node may have printed it.
        with contextlib.suppress(ValueError, TypeError):
            return Compiler(**json.loads(found[1]))
    return None


def object_name(compiler: Compiler, system: str, cpu: str) -> str:
    """The name of the object, without the prefix.

    `system` and `cpu` are those of this machine: C++ is compiled against its libraries and for the
    instructions of its CPU (`-march=native`), also on a machine with a GPU.
    """
    parts = (
        f"torch-{compiler.torch}",
        f"triton-{compiler.triton or 'none'}",
        f"rocm-{compiler.rocm}" if compiler.rocm else f"cuda-{compiler.cuda or 'none'}",
        f"{compiler.device} {compiler.capability}",
        f"python-{compiler.python}",
        system,
        f"cpu-{cpu}",
    )
    return "_".join(_NOT_IN_A_NAME.sub("-", part).strip("-") for part in parts) + ".zip"


def this_system() -> str:
    """The distribution and its version, as `debian 12`, and the architecture."""
    release = {}
    with contextlib.suppress(OSError):
        release = platform.freedesktop_os_release()
    words = (release.get("ID", "linux"), release.get("VERSION_ID", ""), platform.machine())
    return " ".join(word for word in words if word)


def this_cpu() -> str:
    """Which instructions the CPU has, as the first digits of a hash."""
    flags: list[str] = []
    with contextlib.suppress(OSError):
        if found := _CPU_FLAGS.search(Path("/proc/cpuinfo").read_text()):
            flags = sorted(found[1].split())
    return hashlib.sha256(" ".join(flags).encode()).hexdigest()[:8]
