"""In which order ComfyUI will load the model files of a workflow, told from the graph alone.

ComfyUI runs the nodes of a graph one after another and picks the next one by a rule of its own:
`ExecutionList` in its comfy_execution/graph.py. A loader reads its file when its turn comes. So the
files are needed in the order of their loaders, and a file that is brought first is used first.

The order can only be wrong in what the graph does not say: which nodes a subgraph expands into,
which inputs are lazy, and which of several outputs ComfyUI happens to begin with.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from handler.workflow import files_named_in, links_of

_Graph = Mapping[str, Any]


def models_in_order(workflow: _Graph, cached: Collection[str] = ()) -> list[str]:
    """The model files that the run of a workflow loads, in the order in which it loads them.

    `cached` are the nodes whose results ComfyUI has. Never raises for a graph that ComfyUI refuses.
    """
    nodes = nodes_in_order(workflow, cached=cached)
    return list(dict.fromkeys(name for node in nodes for name in files_named_in(workflow[node])))


def nodes_in_order(
    workflow: _Graph,
    *,
    cached: Collection[str] = (),
    is_output: Callable[[str], bool] | None = None,
) -> list[str]:
    """The nodes that ComfyUI runs, in its order.

    `is_output` says whether nodes of a class are outputs. Without it, those are that no node reads:
    ComfyUI runs an end of the graph only if it is an output.
    """
    read = {source for node in workflow.values() for source in _sources(node)}
    outputs = {
        node_id
        for node_id, node in workflow.items()
        if (is_output(node["class_type"]) if is_output else node_id not in read)
    }
    waiting = _Waiting(workflow, cached)
    for node_id in workflow:
        if node_id in outputs:
            waiting.add(node_id)
    order = []
    while ready := waiting.ready():
        picked = _pick(ready, waiting.readers, outputs)
        waiting.remove(picked)
        order.append(picked)
    return order


class _Waiting:
    """The nodes that are still to run, in the order in which ComfyUI finds them.

    `readers` are, for each of them, the waiting nodes that read its result.
    """

    def __init__(self, workflow: _Graph, cached: Collection[str]) -> None:
        self.readers: dict[str, dict[str, None]] = {}
        self._blocked_by: dict[str, int] = {}
        self._workflow, self._cached = workflow, cached

    def add(self, output: str) -> None:
        """Add a node and all that it needs, depth first, the last input first."""
        to_add, links = [output], []
        while to_add:
            node_id = to_add.pop()
            if node_id in self._blocked_by:
                continue
            self._blocked_by[node_id], self.readers[node_id] = 0, {}
            for source in _sources(self._workflow[node_id]):
                if source in self._workflow and source not in self._cached:
                    to_add.append(source)
                    links.append((source, node_id))
        for source, reader in dict.fromkeys(links):
            self.readers[source][reader] = None
            self._blocked_by[reader] += 1

    def ready(self) -> list[str]:
        return [node_id for node_id, count in self._blocked_by.items() if count == 0]

    def remove(self, node_id: str) -> None:
        del self._blocked_by[node_id]
        for reader in self.readers.pop(node_id):
            self._blocked_by[reader] -= 1


def _pick(ready: list[str], readers: Mapping[str, Collection[str]], outputs: set[str]) -> str:
    """The node that runs next: an output, what an output reads, what that reads, or the first.

    ComfyUI's `ux_friendly_pick_node`, without its exception for asynchronous nodes, which call
    remote services and load no file.
    """

    def is_output(node: str) -> bool:
        return node in outputs

    def is_read_by_output(node: str) -> bool:
        return any(map(is_output, readers[node]))

    def is_read_before_output(node: str) -> bool:
        return any(map(is_read_by_output, readers[node]))

    for is_preferred in (is_output, is_read_by_output, is_read_before_output):
        if picked := next(filter(is_preferred, ready), None):
            return picked
    return ready[0]


def _sources(node: Mapping[str, Any]) -> Iterator[str]:
    return (source for _, source in links_of(node["inputs"]))
