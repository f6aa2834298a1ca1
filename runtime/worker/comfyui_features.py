"""What the ComfyUI in a folder can do, found before it is started: version, options, node cache.

What depends on them is decided in comfyui_arguments.py and node_cache.py beside this file. What
the version of a running ComfyUI means to its clients is in handler/comfyui_version.py.

The source is read, not run: `main.py --help` names the same options, but takes a process and 0.1 s
at each start. A folder may be updated while the worker runs, so nothing is kept.
"""

import re
from dataclasses import dataclass
from pathlib import Path

_VERSION = re.compile(r"""__version__\s*=\s*["']([^"']+)""")
_ADDED = re.compile(r"""\.add_argument\(\s*((?:["']--[\w-]+["']\s*,\s*)+)""")
_OPTION = re.compile(r"--[\w-]+")
# The first one in the function `prompt_worker` is the cache that an option must replace.
_CACHE = re.compile(r"cache_type\s*=\s*execution\.CacheType\.(\w+)")
_UNKNOWN_CACHE = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class ComfyUIFeatures:
    """`version` as in "0.33.0", and the `options` of main.py; '' and empty if not known.

    `cache_type`: the name in ComfyUI's CacheType of the node cache that it has unless an option
    says otherwise; UNKNOWN where main.py does not say it, '' where there is none.
    """

    version: str
    options: frozenset[str]
    cache_type: str

    @classmethod
    def of(cls, folder: Path) -> "ComfyUIFeatures":
        """Those of the ComfyUI whose main.py is in `folder`. Raises nothing."""
        version = _VERSION.search(_text(folder / "comfyui_version.py"))
        added = _ADDED.findall(_text(folder / "comfy" / "cli_args.py"))
        names = frozenset(name for names in added for name in _OPTION.findall(names))
        main = _text(folder / "main.py")
        cache = _CACHE.search(main)
        cache_type = cache[1] if cache else _UNKNOWN_CACHE if main else ""
        return cls(version[1] if version else "", names, cache_type)


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
