"""What the version of a running ComfyUI means to its clients.

The worker reads it when ComfyUI answers (runtime/worker/comfyui_process.py) and passes it on to the
handlers. docs/comfyui-versions.md says which versions were tried.
"""

import re
from dataclasses import dataclass

_CANCEL_ROUTE = (0, 26)
_NODE_REPLACEMENTS = (0, 14)


@dataclass(frozen=True, slots=True)
class ComfyUIVersion:
    """`text` is what `/system_stats` gives, as in "0.33.0". '' is unknown: the oldest."""

    text: str = ""

    @property
    def has_cancel_route(self) -> bool:
        """Whether `POST /api/jobs/{id}/cancel` ends a job, wherever it is."""
        return self._numbers() >= _CANCEL_ROUTE

    @property
    def replaces_nodes(self) -> bool:
        """Whether `POST /prompt` gives nodes of a class that is gone the one that replaces it."""
        return self._numbers() >= _NODE_REPLACEMENTS

    def _numbers(self) -> tuple[int, ...]:
        return tuple(int(number) for number in re.findall(r"\d+", self.text)[:2])
