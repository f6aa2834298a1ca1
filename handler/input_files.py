"""Which files the nodes of a job may load: those of ComfyUI's input folder, and the job's own.

ComfyUI's loaders also take `../output/x.png`, an absolute path and `x.png [output]`, and with these
the results of other jobs (folder_paths.py of ComfyUI, `get_annotated_filepath`). They are refused
before ComfyUI sees them, so that no answer depends on whether such a file exists. LOAD_ANY_FILE
allows them all. Which files count as results of a job is decided in artifacts.py.

Only the strings of the workflow itself are checked. ComfyUI's own nodes cannot put a path together
at run time: a loader takes no linked string. A custom node that computes a path, or that declares a
path as text of several lines, can still read what ComfyUI's process can read.
"""

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from events.errors import WorkflowRejected
from handler.workflow import MODEL_SUFFIXES, shown

# The declaration of a node class, {} for an unknown one: see GET /object_info of ComfyUI.
NodeInfo = Callable[[str], Mapping[str, Any]]

# They read ComfyUI's output folder whatever their inputs are.
_READERS_OF_OUTPUT = frozenset({"LoadTrainingDataset"})
_ANNOTATION = re.compile(r"\s?\[(input|output|temp)\]$")
_JSON = ("{", "[")
_ABSOLUTE = re.compile(r"/.|~[^/\s]*/|\\\\|[A-Za-z]:[/\\]", re.DOTALL)
# What a text of _ABSOLUTE begins with, if it has no drive letter.
_FIRST = frozenset("/~\\")
# PATH_MAX of Linux, see limits.h(0p): no longer text names a file.
_MAX_PATH = 4095


@dataclass(frozen=True, slots=True)
class LoadableFiles:
    """The files that a job may load: those below ComfyUI's input folder and below its own."""

    input_folder: Path
    job_folder: Path

    def have(self, text: str) -> bool:
        """Whether a string, if a loader takes it as a path, stays within the two folders."""
        if ".." not in text and text[-1:] != "]" and text[:1] not in _FIRST and text[1:2] != ":":
            # Most strings.
            return True
        path = PurePath(_ANNOTATION.sub("", text))
        if ".." in re.split(r"[/\\]", text):
            return False
        if _ABSOLUTE.match(text):
            return path.is_relative_to(self.input_folder) or path.is_relative_to(self.job_folder)
        match _ANNOTATION.search(text):
            case None:
                return True
            case annotation if annotation[1] == "output":
                return path.parent.parts[:1] == (self.job_folder.name,)
            case annotation:
                return annotation[1] == "input"


def check_files(workflow: Mapping[str, Any], loadable: LoadableFiles, node_info: NodeInfo) -> None:
    """Refuse a workflow that names other files than the loadable ones.

    `node_info` is asked only about node classes with a string that may name one. Raises
    WorkflowRejected, and what `node_info` raises except ValueError.
    """
    for node_id, node in workflow.items():
        if node["class_type"] in _READERS_OF_OUTPUT:
            raise _refusal(node_id, node, "reads ComfyUI's output folder, where other jobs write")
        for name, text in _named_files(node):
            if loadable.have(text):
                continue
            if _is_path(text, node["class_type"], name, node_info):
                problem = f"input '{name}': {shown(text)} is not in the input folder"
                raise _refusal(node_id, node, problem)


def mark_as_used(workflow: Mapping[str, Any], loadable: LoadableFiles) -> None:
    """Set the access time of the input files that the workflow names, so that they count as used.

    Housekeeping spares what was used since a running job began. The modification time stays: nodes
    compare it to see whether a file has changed.
    """
    for node in workflow.values():
        for _, text in _named_files(node):
            # Most strings are no names of files. One without a suffix is marked when it is read.
            if "." in text and not text.endswith(MODEL_SUFFIXES) and loadable.have(text):
                _mark_file(os.path.join(loadable.input_folder, _ANNOTATION.sub("", text)))


def _mark_file(path: str) -> None:
    try:
        modified_ns = os.stat(path).st_mtime_ns
        os.utime(path, ns=(time.time_ns(), modified_ns))
    except (OSError, ValueError):
        # There is no such file, or the folder is read-only.
        return


def _named_files(node: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The name of the input and the string, for each string that may be a path."""
    for name, value in node["inputs"].items():
        if isinstance(value, str):
            if len(value) <= _MAX_PATH:
                yield name, value
        elif isinstance(value, dict | list):
            yield from ((name, text) for text in _strings(value) if len(text) <= _MAX_PATH)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _is_path(text: str, class_type: str, input_name: str, node_info: NodeInfo) -> bool:
    """Whether a node of this class may load a file that the string names."""
    try:
        info = node_info(class_type)
    except ValueError:
        # The declaration of the class cannot be read.
        return True
    inputs = {
        **info.get("input", {}).get("required", {}),
        **info.get("input", {}).get("optional", {}),
    }
    # Newer versions also pass "images.image0", a part of the input "images".
    match inputs.get(input_name) or inputs.get(input_name.split(".", 1)[0]):
        case None:
            # ComfyUI does not pass it to the node.
            return False
        case ["STRING", {"multiline": True}]:
            # A prompt.
            return False
        case ["STRING", *_]:
            # An output node names what it writes, not what it loads.
            return not (info.get("output_node") or text.startswith(_JSON))
    return True


def _refusal(node_id: str, node: Mapping[str, Any], problem: str) -> WorkflowRejected:
    return WorkflowRejected(
        f"node {node_id} ({node['class_type'][:200]}), {problem}; a workflow may load the files of"
        " ComfyUI's input folder and of its own job. Where all jobs belong to one tenant, set"
        " LOAD_ANY_FILE=1",
        node_id=node_id,
    )
