"""Which inputs of a workflow are files to be fetched.

Only an input that is a file of the input folder is one, so a prompt with a URL in it is left alone.
ComfyUI declares such an input with an option like `image_upload`:
https://docs.comfy.org/custom-nodes/backend/datatypes#combo. Some nodes declare a list of names and
nothing else; those that are well known are listed here.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# Inputs that are files of these folders below the input folder. They are known before ComfyUI is
# asked, so they are fetched while it starts.
_KNOWN: Mapping[tuple[str, str], str] = {
    ("LoadImage", "image"): "",
    ("LoadImageMask", "image"): "",
    ("LoadVideo", "file"): "",
    ("LoadAudio", "audio"): "",
    ("LoadLatent", "latent"): "",
    # ComfyUI accepts models of this folder only.
    ("Load3D", "model_file"): "3d",
    # https://github.com/Kosinkadink/ComfyUI-VideoHelperSuite
    ("VHS_LoadVideo", "video"): "",
    ("VHS_LoadVideoFFmpeg", "video"): "",
    ("VHS_LoadAudioUpload", "audio"): "",
}
SUBFOLDERS = frozenset(_KNOWN.values())
_UPLOADS = frozenset(
    {"image_upload", "animated_image_upload", "video_upload", "audio_upload", "file_upload"}
)
_REFERENCE = re.compile(r"(?:https?|s3)://\S+|data:[^\s,]*,.*", re.IGNORECASE | re.DOTALL)
# Longer than the name of a file can be: https://man7.org/linux/man-pages/man3/limits.h.3p.html
_LEAST_BASE64 = 256
# Possessive: a long prompt is read once.
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]++=*+\s*+")


@dataclass(frozen=True, slots=True)
class Reference:
    """An input of a node whose `value` leads to a file. A value may hold secrets."""

    node_id: str
    class_type: str
    name: str
    value: str

    @property
    def path(self) -> str:
        """Where it is in the request."""
        return f"input.workflow_json.{self.node_id}.inputs.{self.name}"

    @property
    def is_known(self) -> bool:
        """Whether it is a file, whatever the node declares."""
        return (self.class_type, self.name) in _KNOWN

    @property
    def subfolder(self) -> str:
        """The folder below the input folder from which the node loads; "" for the latter."""
        return _KNOWN.get((self.class_type, self.name), "")


def references_in(workflow: Mapping[str, Any]) -> Iterator[Reference]:
    """The inputs that are fetched if their nodes load files."""
    for node_id, node in workflow.items():
        for name, value in node["inputs"].items():
            if isinstance(value, str) and is_reference(value.strip()):
                yield Reference(node_id, node["class_type"], name, value.strip())


def is_reference(text: str) -> bool:
    """Whether a text as a whole is a URL, a data: URI, or a file in base64."""
    if _REFERENCE.fullmatch(text):
        return True
    return len(text) >= _LEAST_BASE64 and _BASE64.fullmatch(text) is not None


def loads_file(node_info: Mapping[str, Any], name: str) -> bool:
    """Whether a node declares this input as a file of the input folder."""
    inputs = node_info.get("input", {})
    declared = inputs.get("required", {}).get(name) or inputs.get("optional", {}).get(name)
    if not isinstance(declared, list) or len(declared) < 2 or not isinstance(declared[1], dict):
        return False
    return any(declared[1].get(upload) for upload in _UPLOADS)
