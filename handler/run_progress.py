"""The progress of one run: what samplers and other nodes report, as one percentage that only rises.

Which messages report it is decided in execution.py. The percentage is that of the samplers, because
they take nearly all of a run's time; where no node is a sampler, of any node that reports. It is
100 before the end only when the last sampler has finished, and always at the end.
"""

import math
from collections.abc import Collection
from typing import Any

# 200,000 updates would push the results out of a response of 6 MiB.
MAX_UPDATES = 1000
# The input that marks a sampler: KSampler, KSamplerAdvanced, SamplerCustom, SamplerCustomAdvanced.
_SAMPLER_INPUT = "latent_image"

Update = dict[str, float]


class RunProgress:
    """Collects the updates of one run: {time: s since it began, value, max, percentage}."""

    def __init__(self, workflow: dict[str, Any]) -> None:
        self._samplers = {
            node_id for node_id, node in workflow.items() if _SAMPLER_INPUT in node["inputs"]
        }
        self._sampling: list[str] = []
        self._percentage = 0.0
        self._kept: list[Update] = []
        self._latest: Update | None = None
        self._seen, self._every = 0, 1

    def leave_out(self, cached: Collection[str]) -> None:
        """Do not wait for these nodes: ComfyUI has their results."""
        self._samplers.difference_update(cached)

    def report(self, node_id: str, value: Any, maximum: Any, time_s: float) -> Update | None:
        """The update that a node's report makes; None for numbers that are not finite.

        `node_id` is that of the workflow, also for a node of a subgraph that this one expands into.
        """
        if not (_is_finite(value) and _is_finite(maximum)):
            # An error of a custom node.
            return None
        share = min(max(value / maximum, 0.0), 1.0) if maximum else 1.0
        self._percentage = max(self._percentage, self._of_run(node_id, share))
        return self._add(value, maximum, time_s)

    def finish(self, time_s: float) -> Update | None:
        """The update that completes a run which succeeded; None if nothing is left to report."""
        if self._latest is None or self._percentage == 100.0:
            return None
        self._percentage = 100.0
        maximum = self._latest["max"]
        return self._add(maximum, maximum, time_s)

    def updates(self) -> list[Update]:
        """MAX_UPDATES at most: of more, every second, fourth, … one, and always the last one."""
        if self._latest is None or self._latest is self._kept[-1]:
            return self._kept
        return [*self._kept, self._latest]

    def _of_run(self, node_id: str, share: float) -> float:
        """The percentage of the run when this node has done `share` of its steps."""
        if not self._samplers:
            return 100 * share
        if node_id not in self._samplers:
            return 0.0
        if node_id not in self._sampling:
            self._sampling.append(node_id)
        return 100 * (self._sampling.index(node_id) + share) / len(self._samplers)

    def _add(self, value: float, maximum: float, time_s: float) -> Update:
        update = {
            "time": round(time_s, 3),
            "value": value,
            "max": maximum,
            "percentage": _plain(self._percentage),
        }
        if self._seen % self._every == 0:
            self._kept.append(update)
        self._seen += 1
        self._latest = update
        if len(self._kept) == MAX_UPDATES:
            del self._kept[1::2]
            self._every *= 2
        return update


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except (TypeError, OverflowError):
        return False


def _plain(value: float) -> float:
    """10 instead of 10.0, 33.33 instead of 33.333333."""
    return int(value) if value == int(value) else round(value, 2)
