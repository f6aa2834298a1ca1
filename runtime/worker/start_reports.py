"""What ComfyUI's process says of its start on stdout: its device, and its custom nodes.

The lines are written by runtime/worker/gpu_check.py and inside_custom_nodes.py. What the device
means for the worker is decided in runtime/worker/device_fault.py.
"""

import json
import re
from dataclasses import replace

from handler.start_report import Device, FailedNode
from runtime.installation.driver import installed_driver
from runtime.log import log

ALL = "all"
_LINE = re.compile(r"\[(device|custom node)\] (\{.*\})$")


class StartReports:
    """What one process has said until now. `take` gets its lines, in one thread."""

    def __init__(self) -> None:
        self.device: Device | None = None
        self.failed_nodes: tuple[FailedNode, ...] = ()
        self._loading = ""
        self._loaded: set[str] = set()

    def take(self, line: str) -> bool:
        """Whether the line is one of these reports. What it says is logged."""
        if not (found := _LINE.search(line)):
            return False
        try:
            content = json.loads(found[2])
            if found[1] == "device":
                self.device = Device(
                    **content | {"driver": "", "kernels": tuple(content["kernels"])}
                )
            else:
                self._take_node(**content)
        except (ValueError, TypeError, KeyError):
            # A custom node has printed it.
            return False
        return True

    def complete(self) -> None:
        """Add the driver of the GPU, and log the device. Call it when the start has ended."""
        if self.device is None:
            return
        if self.device.kind == "cuda" and not self.device.rocm:
            self.device = replace(self.device, driver=installed_driver() or "")
        log(f"device: {json.dumps(vars(self.device))}")

    @property
    def during(self) -> str:
        """What the process does, as the end of a sentence; '' if it is not known."""
        return f", while it imported the custom node {self._loading}" if self._loading else ""

    def missing_nodes(self, required: tuple[str, ...]) -> str:
        """Which of the required custom nodes did not load and why, in words; '' for none.

        `required` are their names, or `all`: each that ComfyUI has found.
        """
        failed = {node.name: node.reason for node in self.failed_nodes}
        names = list(failed) if ALL in required else []
        names += [name for name in required if name not in {ALL, *names, *self._loaded}]
        return "; ".join(
            f"{name} failed to import: {failed[name]}"
            if name in failed
            else f"{name} is not in the folder custom_nodes"
            for name in names
        )

    def _take_node(self, *, name: str, state: str, reason: str) -> None:
        self._loading = name if state == "begins" else ""
        if state == "loaded":
            self._loaded.add(name)
        elif state == "failed":
            self.failed_nodes += (FailedNode(name, reason),)
            log(f"custom node {name} failed to import: {reason}")
