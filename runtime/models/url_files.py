"""The models that requests have named by URL, as earlier workers left them on the disk.

Their names are made in handler/model_urls.py. Where they came from is not on the disk, since a URL
may contain a token: one that is not complete goes on when a request names its URL again.
"""

import re
import time
from pathlib import Path

from handler.model_urls import SAFE_SUFFIXES, URL_FOLDER
from runtime.log import log
from runtime.models.manifest import ModelFile
from runtime.models.parts import is_placeholder
from runtime.models.placeholders import delete_placeholder

# No job lasts that long, so none needs the placeholder, not even one of another worker.
_LEFT_OVER_AFTER_S = 24 * 3600.0
_DIGEST = re.compile(r"[0-9a-f]{16}")


def find_url_files(root: Path) -> dict[Path, ModelFile]:
    """The files below a folder that is laid out like ComfyUI's `models`. They have no sources.

    What nobody has completed within a day is deleted.
    """
    found = {}
    for path in root.glob(f"*/{URL_FOLDER}/*/*"):
        kind, _, digest, name = path.relative_to(root).parts
        if not _DIGEST.fullmatch(digest) or not name.lower().endswith(SAFE_SUFFIXES):
            continue
        if not _was_left_over(path):
            found[path] = ModelFile(name=f"{URL_FOLDER}/{digest}/{name}", folder=kind, sources=())
    return found


def _was_left_over(path: Path) -> bool:
    """Whether it was a placeholder that no job needs any more: then it is gone now."""
    try:
        is_old = time.time() - path.lstat().st_mtime > _LEFT_OVER_AFTER_S
        return is_old and is_placeholder(path) and delete_placeholder(path)
    except OSError as error:
        log(f"models: {path} cannot be removed: {error.strerror}")
        return False
