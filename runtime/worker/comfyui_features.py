"""What the ComfyUI in a folder can do, found before it is started: its version and its options.

What depends on it is decided in runtime/worker/comfyui_arguments.py. What the version of a running
ComfyUI means to its clients is in handler/comfyui_version.py.

The source is read, not run: `main.py --help` names the same options, but takes a process and 0.1 s
at each start. A folder may be updated while the worker runs, so nothing is kept.
"""

import re
from dataclasses import dataclass
from pathlib import Path

_VERSION = re.compile(r"""__version__\s*=\s*["']([^"']+)""")
_ADDED = re.compile(r"""\.add_argument\(\s*((?:["']--[\w-]+["']\s*,\s*)+)""")
_OPTION = re.compile(r"--[\w-]+")


@dataclass(frozen=True, slots=True)
class ComfyUIFeatures:
    """`version` as in "0.33.0", and the `options` of main.py; '' and empty if not known."""

    version: str
    options: frozenset[str]

    @classmethod
    def of(cls, folder: Path) -> "ComfyUIFeatures":
        """Those of the ComfyUI whose main.py is in `folder`. Raises nothing."""
        version = _VERSION.search(_text(folder / "comfyui_version.py"))
        added = _ADDED.findall(_text(folder / "comfy" / "cli_args.py"))
        names = frozenset(name for names in added for name in _OPTION.findall(names))
        return cls(version[1] if version else "", names)


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
