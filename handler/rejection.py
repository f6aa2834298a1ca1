"""Turns a refusal by ComfyUI's validation into one sentence that names node, input and choices.

A value that is not available, such as a missing model, is explained in choices.py. What a node's
exception during the run means is decided in node_failure.py. The answers of `POST /prompt`:
execution.py of ComfyUI, `validate_prompt` and `validate_inputs`.
"""

from collections.abc import Callable
from typing import Any

from events.errors import WorkflowRejected
from handler.choices import explain_unavailable
from handler.workflow import explain_links

MAX_PROBLEMS = 5

# Newer versions of ComfyUI report a cycle once for each of its nodes, older ones as a crash.
_ABOUT_THE_GRAPH = ("dependency_cycle", "exception_during_validation")

# The declarations of a node class's inputs, by name; empty if ComfyUI does not answer.
InputsOf = Callable[[str], dict[str, Any]]


def explain_rejection(
    answer: dict[str, Any], workflow: dict[str, Any], http_status: int, inputs_of: InputsOf
) -> WorkflowRejected:
    """The error for a refused workflow, with ComfyUI's `node_errors` but without option lists."""
    node_errors = answer.get("node_errors") or {}
    problems = [
        (node_id, node.get("class_type", "?"), problem)
        for node_id, node in node_errors.items()
        for problem in node.get("errors", [])
    ]
    if _is_about_the_graph(answer, problems, http_status):
        try:
            explain_links(workflow)
        except WorkflowRejected as rejection:
            return rejection
    if problems:
        sentences = [_node_problem(*problem, inputs_of) for problem in problems[:MAX_PROBLEMS]]
        others = len(problems) - len(sentences)
        text = "; ".join(sentences) + (f"; and {others} more" if others else "")
        return WorkflowRejected(text, node_id=problems[0][0], node_errors=_compact(node_errors))
    return _graph_problem(answer.get("error"), workflow, http_status)


def _is_about_the_graph(answer: dict[str, Any], problems: list[Any], http_status: int) -> bool:
    """Whether the answer may be about the links between nodes: an older one does not say so."""
    kind = (answer.get("error") or {}).get("type")
    errors = [e for node in (answer.get("node_errors") or {}).values() for e in node["errors"]]
    return (
        http_status >= 500
        or any(error.get("type") in _ABOUT_THE_GRAPH for error in errors)
        or (kind == "prompt_outputs_failed_validation" and not problems)
    )


def _node_problem(
    node_id: str, class_type: str, problem: dict[str, Any], inputs_of: InputsOf
) -> str:
    extra = problem.get("extra_info") or {}
    name = extra.get("input_name", "")
    location = f"node {node_id} ({class_type})" + (f", input '{name}'" if name else "")
    match problem.get("type"):
        case "value_not_in_list":
            # ComfyUI leaves out lists of more than 20 choices.
            declaration = extra.get("input_config") or inputs_of(class_type).get(name)
            value = extra.get("received_value")
            return f"{location}: {explain_unavailable(value, class_type, name, declaration)}"
        case "required_input_missing":
            return f"{location}: the input is required, but the workflow does not give it"
        case _:
            details = problem.get("details") or ""
            message = str(problem.get("message") or problem.get("type"))[:300]
            return f"{location}: {message}" + (f" ({str(details)[:300]})" if details else "")


def _graph_problem(error: Any, workflow: dict[str, Any], http_status: int) -> WorkflowRejected:
    if not isinstance(error, dict):
        return WorkflowRejected(f"ComfyUI could not read the workflow (HTTP {http_status})")
    node_id = _node_named_in(error, workflow)
    if node_id is not None and error.get("type") in ("invalid_prompt", "missing_node_type"):
        class_type = workflow[node_id]["class_type"][:200]
        remedy = (
            "ComfyUI's own audio nodes need the package torchaudio in ComfyUI's environment;"
            " else install the custom node that has it"
            if "Audio" in class_type
            else "install the custom node that has it"
        )
        return WorkflowRejected(
            f"node {node_id}: its class '{class_type}' is not installed in this ComfyUI;"
            f" {remedy}, or correct class_type",
            node_id=node_id,
        )
    if error.get("type") == "prompt_no_outputs":
        return WorkflowRejected(
            "the workflow has no output node, so it would have no result: add one that saves"
            " (SaveImage, SaveVideo, ...)"
        )
    message, details = str(error.get("message") or error.get("type"))[:300], error.get("details")
    return WorkflowRejected(f"{message} ({str(details)[:300]})" if details else message)


def _node_named_in(error: dict[str, Any], workflow: dict[str, Any]) -> str | None:
    node_id = str((error.get("extra_info") or {}).get("node_id", ""))
    if node_id in workflow:
        return node_id
    text = f"{error.get('details')} "
    return next((node for node in workflow if f"'#{node}'" in text or f"#{node} " in text), None)


def _compact(node_errors: dict[str, Any]) -> dict[str, Any]:
    """ComfyUI's node_errors without the option lists, which can have thousands of entries."""
    return {
        node_id: {
            **node,
            "errors": [
                {k: v for k, v in problem.items() if k != "extra_info"}
                | {"extra_info": _without_config(problem.get("extra_info"))}
                for problem in node.get("errors", [])
            ],
        }
        for node_id, node in node_errors.items()
    }


def _without_config(extra: Any) -> dict[str, Any]:
    return {k: v for k, v in (extra or {}).items() if k in ("input_name", "received_value")}
