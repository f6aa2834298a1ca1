"""What happens to a workflow before it is queued, and what can be read from it without ComfyUI."""

import json
import secrets
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

from events.errors import WorkflowRejected

RANDOM_INT = "__RANDOM_INT__"
# folder_paths.py of ComfyUI: supported_pt_extensions, and what popular node packs add.
MODEL_SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".gguf")


def fill_random_ints(value: Any) -> Any:
    """A copy with a random number, 0 to 2**32-1, for each placeholder; keys stay as they are.

    The whole string becomes an integer (samplers refuse a string); inside a longer string the
    digits are spliced in. Each occurrence draws its own number.
    """
    match value:
        case dict():
            return {key: fill_random_ints(item) for key, item in value.items()}
        case list():
            return [fill_random_ints(item) for item in value]
        case str() if value == RANDOM_INT:
            return _draw()
        case str() if RANDOM_INT in value:
            first, *rest = value.split(RANDOM_INT)
            return first + "".join(f"{_draw()}{part}" for part in rest)
        case _:
            return value


def force_rerun(workflow: dict[str, Any], nodes: Iterable[str]) -> dict[str, Any]:
    """A copy in which these nodes run again although nothing of theirs has changed.

    ComfyUI's cache compares all inputs (comfy_execution/caching.py), but nodes only get the ones
    that they declare.
    """
    fresh = {"force_rerun": _draw()}
    return workflow | {
        node: workflow[node] | {"inputs": workflow[node]["inputs"] | fresh}
        for node in nodes
        if node in workflow
    }


def explain_links(workflow: dict[str, Any]) -> None:
    """Find what ComfyUI's validation stumbles over without saying where.

    Raises WorkflowRejected that names the node: a link to a node that is not there, or a cycle.
    Both are harmless in a branch that no output needs, so ComfyUI is asked first.
    """
    links = {node_id: list(links_of(node["inputs"])) for node_id, node in workflow.items()}
    for node_id, targets in links.items():
        for name, target in targets:
            if target not in workflow:
                raise WorkflowRejected(
                    f"node {node_id} ({workflow[node_id]['class_type']}): input '{name}' is linked"
                    f" to node '{target}', which the workflow does not have",
                    node_id=node_id,
                )
    try:
        TopologicalSorter({node: {t for _, t in found} for node, found in links.items()}).prepare()
    except CycleError as error:
        cycle = error.args[1]
        raise WorkflowRejected(
            f"the links of the nodes {', '.join(cycle)} form a cycle: none of them can run first",
            node_id=cycle[0],
        ) from None


def model_names(workflow: dict[str, Any]) -> list[str]:
    """The model files that a workflow names, in the order in which it names them."""
    return list(dict.fromkeys(name for node in workflow.values() for name in files_named_in(node)))


def files_named_in(node: Mapping[str, Any]) -> list[str]:
    """The model files that a node names."""
    return [value for value in _strings(node["inputs"]) if value.endswith(MODEL_SUFFIXES)]


def unneeded_nodes(workflow: Mapping[str, Any], is_output: Callable[[str], bool]) -> frozenset[str]:
    """The nodes that no output needs: ComfyUI does not run them.

    `is_output` says whether nodes of a class are outputs. It is asked about ends of the graph only.
    """
    readers = Counter(
        target for node in workflow.values() for _, target in links_of(node["inputs"])
    )
    ends = [node_id for node_id in workflow if not readers[node_id]]
    unneeded = set()
    while ends:
        node_id = ends.pop()
        if is_output(workflow[node_id]["class_type"]):
            continue
        unneeded.add(node_id)
        for _, target in links_of(workflow[node_id]["inputs"]):
            readers[target] -= 1
            if not readers[target] and target in workflow:
                ends.append(target)
    return frozenset(unneeded)


def nodes_to_run(workflow: Mapping[str, Any], cached: Collection[str]) -> frozenset[str]:
    """The nodes that are left to run where ComfyUI has the results of `cached`.

    What only cached nodes read does not run either, whether or not its own result is still there.
    """
    read = {target for node in workflow.values() for _, target in links_of(node["inputs"])}
    waiting = [node_id for node_id in workflow if node_id not in read]
    found: set[str] = set()
    while waiting:
        node_id = waiting.pop()
        if node_id in found or node_id in cached or node_id not in workflow:
            continue
        found.add(node_id)
        waiting += [target for _, target in links_of(workflow[node_id]["inputs"])]
    return frozenset(found)


def _draw() -> int:
    return secrets.randbelow(2**32)


def links_of(inputs: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The inputs that are linked to a node: the name of each, and the node's id."""
    for name, value in inputs.items():
        if _is_link(value):
            yield name, value[0]


def _is_link(value: Any) -> bool:
    # The rule of ComfyUI's comfy_execution/graph_utils.py.
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int | float)
    )


def _strings(inputs: dict[str, Any]) -> Iterator[str]:
    return (value for value in inputs.values() if isinstance(value, str))


def shown(value: Any, limit: int = 80) -> str:
    """A value of the workflow, short enough for a sentence."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else text[: limit - 3] + "..."
