"""What a version of ComfyUI needs: its own requirements.txt, with our pins where they agree.

torch, torchvision and torchaudio are left out: runtime/installation/pytorch.py decides on them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.extras import require
from runtime.installation.command import InstallError
from runtime.installation.pins import Pin
from runtime.installation.pytorch import PACKAGES, is_of_pytorch

# Only the editor in a browser uses them.
OF_EDITOR = frozenset({"comfyui-workflow-templates", "comfyui-embedded-docs"})
# ComfyUI starts without them: tried on 0.3.75 (torchaudio, kornia, spandrel) and on 0.33.0 (kornia,
# spandrel, PyOpenGL, comfy-angle), which needs torchaudio. What is missing then:
OPTIONAL = {
    "torchaudio": "the audio nodes",
    "kornia": "Canny and morphology nodes, in newer versions also latent and post-processing nodes",
    "kornia-rs": "what needs kornia",
    "spandrel": "the nodes for upscale models",
    "pyopengl": "the nodes for GLSL shaders",
    "comfy-angle": "the nodes for GLSL shaders",
}


@dataclass(frozen=True, slots=True)
class Needs:
    """The packages of ComfyUI's environment, without PyTorch.

    `own` are the requirements of this ComfyUI that no pin meets. pip finds versions for them.
    """

    pinned: tuple[Pin, ...]
    own: tuple[str, ...]


def needs_of(requirements: Path, pins: Sequence[Pin]) -> Needs:
    """What `requirements`, a ComfyUI's requirements.txt, needs. Raises InstallError.

    A pin that disagrees with it is dropped: the ComfyUI's requirement counts.
    """
    require("packaging")
    from packaging.requirements import InvalidRequirement, Requirement  # noqa: PLC0415
    from packaging.utils import canonicalize_name  # noqa: PLC0415

    version_of = {pin.name: pin.version for pin in pins}
    own: dict[str, str] = {}
    for line in _lines(requirements):
        try:
            required = Requirement(line)
        except InvalidRequirement as error:
            raise InstallError(f"{requirements}: cannot read `{line}`: {error}") from error
        name = canonicalize_name(required.name)
        if name in PACKAGES or name in OF_EDITOR:
            continue
        if required.marker and not required.marker.evaluate():
            continue
        pinned = version_of.get(name)
        if pinned is None or not required.specifier.contains(pinned, prereleases=True):
            own[name] = line
    return Needs(
        pinned=tuple(p for p in pins if not is_of_pytorch(p.name) and p.name not in own),
        own=tuple(own.values()),
    )


def _lines(requirements: Path) -> list[str]:
    try:
        text = requirements.read_text()
    except OSError as error:
        raise InstallError(f"cannot read what ComfyUI needs: {error}") from error
    # A comment starts the line, or follows a blank: a URL may contain `#`.
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines())
    return [line for line in lines if line]
