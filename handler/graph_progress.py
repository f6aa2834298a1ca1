"""One percentage over the whole graph of a run, and an estimate of the seconds left.

A node weighs what such a node took last time on this worker (node_durations.py); where nothing is
known of a graph, all of its nodes weigh the same. What ComfyUI's cache answers weighs nothing.
The percentage that the response documents, that of the samplers, is in run_progress.py.
"""

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from handler.node_durations import NodeDurations
from handler.workflow import nodes_to_run

# The rest comes with the end of the run: its files may still have to be read.
_MOST_BEFORE_THE_END = 99.0
# Of a node that took no measurable time.
_LEAST_S = 0.001


class GraphProgress:
    """The progress of one run of `workflow`. It begins at `percentage`, and never falls.

    `clock` returns seconds that only grow. Node ids are those of the workflow, also for a node of a
    subgraph that one of them expands into.
    """

    def __init__(
        self,
        workflow: Mapping[str, Any],
        durations: NodeDurations,
        clock: Callable[[], float] = time.monotonic,
        percentage: float = 0.0,
    ) -> None:
        self._needed, self._durations, self._clock = dict(workflow), durations, clock
        self._cached = 0
        self._taken_s: dict[str, float] = {}
        # How much of itself a node has done, 0 to 1; only of nodes that have begun.
        self._shares: dict[str, float] = {}
        self._ended: set[str] = set()
        self._unfinished: Collection[str] = ()
        self._current: str | None = None
        self._entered_at = clock()
        self._percentage = percentage
        self._weigh(workflow)

    @property
    def nodes_done(self) -> int:
        """The nodes that have ended, and those that the cache has answered."""
        return self._cached + len(self._ended)

    @property
    def nodes_total(self) -> int:
        return len(self._needed)

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
        """Seconds left, an estimate; None if a node that is left to run is of an unknown kind."""
        if len(self._known) < len(self._weights):
            return None
        waiting_s = sum(
            max(weight - self._taken_s.get(node_id, 0.0), 0.0)
            for node_id, weight in self._weights.items()
            if node_id not in self._ended and node_id != self._current
        )
        return round(waiting_s + self._current_left_s(), 1)

    def leave_out(self, unneeded: Collection[str]) -> None:
        """No output needs these nodes, and ComfyUI does not run them."""
        self._needed = {
            node_id: node for node_id, node in self._needed.items() if node_id not in unneeded
        }
        self._weigh(self._needed)

    def note_cached(self, cached: Collection[str]) -> None:
        """ComfyUI has the results of these nodes."""
        to_run = nodes_to_run(self._needed, cached)
        self._cached = len(self._needed) - len(to_run)
        self._weigh(to_run)

    def enter(self, node_id: str) -> None:
        """This node runs now."""
        if node_id == self._current:
            return
        self._leave_current()
        self._current = node_id
        self._shares.setdefault(node_id, 0.0)
        self._entered_at = self._clock()
        self._update()

    def note_unfinished(self, node_ids: Collection[str]) -> None:
        """These nodes have begun and not ended: that which runs, and those that wait.

        A node waits for the subgraph that it expands into, and meanwhile others may run. Without
        this call a node has ended when another one runs.
        """
        self._unfinished = node_ids
        for node_id in self._shares.keys() - {self._current, *node_ids}:
            self._end(node_id)
        self._update()

    def report(self, value: float, maximum: float, *, is_part: bool = False) -> None:
        """The current node has done `value` of `maximum` steps; it may do so several times.

        `is_part`: these are the steps of one node of the subgraph that it expands into.
        """
        if self._current is None or maximum <= 0:
            return
        share = min(max(value / maximum, 0.0), 1.0)
        if is_part and self._current in self._known:
            # How many more nodes there are is not known. How long they all took last time is.
            share = min(share, self._spent_s() / self._weights[self._current])
        self._shares[self._current] = max(self._shares[self._current], share)
        self._update()

    def note_wait(self, seconds: float) -> None:
        """The current node has waited so long for a model file: the next time it need not."""
        self._entered_at += seconds

    def finish(self) -> None:
        """The run has succeeded: keep what its nodes took."""
        self._leave_current()
        self._current = None
        self.note_unfinished(())
        self._percentage = 100.0
        self._durations.store(self._taken_s, self._needed)

    def _weigh(self, to_run: Collection[str]) -> None:
        """Let these nodes share the percentage."""
        self._known = {
            node_id: max(seconds, _LEAST_S)
            for node_id in to_run
            if (seconds := self._durations.of(self._needed[node_id])) is not None
        }
        # A node of an unknown class is as long as the others on average.
        usual = sum(self._known.values()) / len(self._known) if self._known else 1.0
        self._weights = {node_id: self._known.get(node_id, usual) for node_id in to_run}

    def _current_left_s(self) -> float:
        """From what such a node took last time, and the more of it is done, from its own speed."""
        if self._current is None:
            return 0.0
        spent_s = self._spent_s()
        as_last_time = max(self._weights.get(self._current, 0.0) - spent_s, 0.0)
        share = self._shares[self._current]
        if not share:
            return as_last_time
        at_its_speed = spent_s * (1 - share) / share
        return share * at_its_speed + (1 - share) * as_last_time

    def _spent_s(self) -> float:
        """In the current node. It may be entered again, after those that it expands into."""
        before_s = self._taken_s.get(self._current or "", 0.0)
        return before_s + self._clock() - self._entered_at

    def _leave_current(self) -> None:
        if self._current is None:
            return
        self._taken_s[self._current] = self._spent_s()
        if self._current not in self._unfinished:
            self._end(self._current)

    def _end(self, node_id: str) -> None:
        self._shares[node_id] = 1.0
        if node_id in self._weights:
            self._ended.add(node_id)

    def _update(self) -> None:
        total = sum(self._weights.values())
        if not total:
            return
        done = sum(
            weight * self._shares.get(node_id, 0.0) for node_id, weight in self._weights.items()
        )
        self._percentage = max(self._percentage, min(100 * done / total, _MOST_BEFORE_THE_END))
