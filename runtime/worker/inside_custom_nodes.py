"""Says on stdout which custom nodes ComfyUI imports, and which of them it cannot import, and why.

runtime/worker/inside_comfyui.py loads this file before ComfyUI's own code. ComfyUI's Python runs
it, so it imports nothing of this project. The lines are read by runtime/worker/start_reports.py.

ComfyUI imports each custom node with `load_custom_node` of its nodes.py, which logs an exception
and returns False. Its callers are those that know whether the node belongs to ComfyUI itself: the
keyword `module_parent`.
"""

import functools
import importlib.machinery
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

_MODULE = "nodes"
_LOADER = "load_custom_node"
_CUSTOM = "custom_nodes"
_MAX_REASON = 500


def watch(on_nodes: Callable[[], object]) -> None:
    """Report each custom node from now on. Call it before ComfyUI imports its nodes.py.

    `on_nodes` is called before the first one, when ComfyUI has chosen its device.
    """
    sys.meta_path.insert(0, _Finder(on_nodes))


class _Finder:
    """Finds ComfyUI's nodes.py as Python does, and extends it once it was executed."""

    def __init__(self, on_nodes: Callable[[], object]) -> None:
        self._on_nodes = on_nodes

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        loader: Any = spec.loader if spec else None
        if hasattr(loader, "exec_module"):
            execute = loader.exec_module

            def execute_and_extend(module: ModuleType) -> None:
                execute(module)
                _extend(module)
                self._on_nodes()

            loader.exec_module = execute_and_extend
        return spec


def _extend(nodes: ModuleType) -> None:
    plain = getattr(nodes, _LOADER, None)
    if plain is None:
        return

    @functools.wraps(plain)
    async def load_custom_node(module_path: str, *arguments: Any, **options: Any) -> bool:
        if options.get("module_parent", _CUSTOM) != _CUSTOM:
            return bool(await plain(module_path, *arguments, **options))
        name = Path(module_path).name
        _report(name, "begins")
        reasons = _Reasons()
        logging.root.addHandler(reasons)
        try:
            is_loaded = bool(await plain(module_path, *arguments, **options))
        finally:
            logging.root.removeHandler(reasons)
        if is_loaded:
            _report(name, "loaded")
        else:
            _report(name, "failed", reasons.last)
        return is_loaded

    setattr(nodes, _LOADER, load_custom_node)


class _Reasons(logging.Handler):
    """Keeps why a node fails: the exception that ComfyUI handles while it logs, or the warning."""

    last = ""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING:
            return
        error = sys.exc_info()[1]
        if error is None:
            self.last = record.getMessage()
        else:
            # The last line: a SyntaxError has several.
            lines = str(error).strip().splitlines()
            self.last = ": ".join([type(error).__name__, *lines[-1:]])


def _report(name: str, state: str, reason: str = "") -> None:
    content = {"name": name, "state": state, "reason": reason[:_MAX_REASON]}
    # At once, and past ComfyUI's own log: the node may end this process.
    os.write(1, f"[custom node] {json.dumps(content)}\n".encode())
