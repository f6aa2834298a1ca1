"""One percentage over the whole graph of a run, and an estimate of the seconds left.

A node weighs what such a node took last time on this worker (node_durations.py); where nothing is
known of a graph, all of its nodes weigh the same. What ComfyUI's cache answers weighs nothing.
The percentage that the response documents, that of the samplers, is in run_progress.py.
"""

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from handler.node_durations import NodeDurations

# The rest comes with the end of the run: its files may still have to be read.
_MOST_BEFORE_THE_END = 99.0
# Of a node that took no measurable time.
_LEAST_S = 0.001


class GraphProgress:
    """The progress of one run of `workflow`. The percentage never falls.

    `clock` returns seconds that only grow.
    """

    def __init__(
        self,
        workflow: Mapping[str, Any],
        durations: NodeDurations,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._workflow, self._durations, self._clock = workflow, durations, clock
        known = {node_id: durations.of(node) for node_id, node in workflow.items()}
        self._are_known = bool(known) and None not in known.values()
        times = [seconds for seconds in known.values() if seconds is not None]
        # A node of an unknown class is as long as the others on average.
        usual = sum(times) / len(times) if times else 1.0
        self._weights = {
            node_id: max(usual if seconds is None else seconds, _LEAST_S)
            for node_id, seconds in known.items()
        }
        self._taken_s: dict[str, float] = {}
        self._done: set[str] = set()
        self._cached = 0
        self._current: str | None = None
        self._share = 0.0
        self._entered_at = clock()
        self._percentage = 0.0
        self.step: float | None = None
        self.steps: float | None = None

    @property
    def nodes_done(self) -> int:
        """The nodes that have ended, and those that the cache has answered."""
        return self._cached + len(self._done - {self._current})

    @property
    def nodes_total(self) -> int:
        return len(self._workflow)

    @property
    def node_id(self) -> str | None:
        """The node that runs now."""
        return self._current

    @property
    def percentage(self) -> float:
        """0 to 99 while the run goes on, 100 after `finish`."""
        return round(self._percentage, 1)

    @property
    def eta_s(self) -> float | None:
        """Seconds left, an estimate; None if a node of the graph is of an unknown kind."""
        if not self._are_known:
            return None
        waiting = [
            seconds
            for node_id, seconds in self._weights.items()
            if node_id not in self._done and node_id != self._current
        ]
        current_s = self._weights.get(self._current or "", 0.0)
        spent_s = self._clock() - self._entered_at
        if self._share > 0:
            current_left_s = spent_s * (1 - self._share) / self._share
        else:
            current_left_s = max(current_s - spent_s, 0.0)
        return round(sum(waiting) + (current_left_s if self._current else 0.0), 1)

    def leave_out(self, cached: Collection[str]) -> None:
        """ComfyUI has the results of these nodes."""
        for node_id in cached:
            if self._weights.pop(node_id, None) is not None:
                self._cached += 1

    def enter(self, node_id: str) -> None:
        """A node of the graph, or of one that it expands into, runs now."""
        if node_id == self._current:
            return
        self._leave_current()
        self._current, self._share = node_id, 0.0
        self.step = self.steps = None
        self._entered_at = self._clock()
        self._update()

    def report(self, value: float, maximum: float) -> None:
        """The current node has done `value` of `maximum` steps; it may do so several times."""
        self.step, self.steps = value, maximum
        if maximum > 0:
            self._share = max(self._share, min(max(value / maximum, 0.0), 1.0))
        self._update()

    def finish(self) -> None:
        """The run has succeeded: keep what its nodes took."""
        self._leave_current()
        self._current = None
        self._percentage = 100.0
        self._durations.store(self._taken_s, self._workflow)

    def _leave_current(self) -> None:
        if self._current is None:
            return
        spent_s = self._clock() - self._entered_at
        # A node may be entered again, after those of the subgraph that it expands into.
        self._taken_s[self._current] = self._taken_s.get(self._current, 0.0) + spent_s
        self._done.add(self._current)

    def _update(self) -> None:
        total = sum(self._weights.values())
        if not total:
            return
        done = sum(
            weight
            for node_id, weight in self._weights.items()
            if node_id in self._done and node_id != self._current
        )
        current = self._weights.get(self._current or "", 0.0) * self._share
        share = (done + current) / total
        self._percentage = max(self._percentage, min(100 * share, _MOST_BEFORE_THE_END))
