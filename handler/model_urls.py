"""Models that a request names by URL: which are allowed, and what they are called on the worker.

The worker downloads them, and ComfyUI's loaders wait for them as for those of a manifest. Where
they come from is restricted by MODEL_URLS and, as every URL of a caller, by handler/outbound.py.
"""

import hashlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from events.errors import InvalidRequest
from handler.choices import model_folder
from handler.settings import Settings
from handler.worker_protocol import ModelUrl
from handler.workflow import MODEL_SUFFIXES

# Below the folder of its kind. A name of its own for each URL: none replaces another model.
URL_FOLDER = "from_url"
# Names of files have 255 bytes at most: ext4(5). A download adds endings to them.
_MAX_NAME_BYTES = 200
# The others are pickles, which can run code when they are loaded:
# https://docs.python.org/3/library/pickle.html
SAFE_SUFFIXES = (".safetensors", ".sft", ".gguf")


def take_model_urls(
    workflow: dict[str, Any], settings: Settings
) -> tuple[dict[str, Any], tuple[ModelUrl, ...]]:
    """A copy of the workflow with names instead of the URLs of models, and these models.

    Without MODEL_URLS nothing is taken. Raises InvalidRequest, which names the input.
    """
    found = list(_found(workflow, settings)) if settings.model_url_hosts else []
    if not found:
        return workflow, ()
    copy = {node_id: node | {"inputs": dict(node["inputs"])} for node_id, node in workflow.items()}
    for node_id, input_name, model in found:
        copy[node_id]["inputs"][input_name] = model.name
    return copy, tuple({model.name: model for _, _, model in found}.values())


def _found(workflow: dict[str, Any], settings: Settings) -> Iterator[tuple[str, str, ModelUrl]]:
    for node_id, node in workflow.items():
        for input_name, value in node["inputs"].items():
            folder = model_folder(node["class_type"], input_name)
            if folder and isinstance(value, str) and _is_model_url(value.strip()):
                path = f"input.workflow_json.{node_id}.inputs.{input_name}"
                yield node_id, input_name, _model(value.strip(), folder, path, settings)


def _is_model_url(value: str) -> bool:
    if not value.lower().startswith(("https://", "http://")):
        return False
    return _file_name(value).lower().endswith(MODEL_SUFFIXES)


def _model(url: str, folder: str, path: str, settings: Settings) -> ModelUrl:
    try:
        parts = urlsplit(url)
        host, _ = (parts.hostname or "").lower(), parts.port
        encoded = url.encode()
    except ValueError:
        raise InvalidRequest(f"{path}: this URL of a model is not valid") from None
    if host not in {allowed.lower() for allowed in settings.model_url_hosts}:
        raise InvalidRequest(
            f"{path}: models by URL come from the hosts of MODEL_URLS alone, which has not {host}"
        )
    file_name = _file_name(url)
    if not file_name.lower().endswith(SAFE_SUFFIXES):
        raise InvalidRequest(
            f"{path}: {file_name} can run code when it is loaded;"
            f" expected one of {', '.join(SAFE_SUFFIXES)}"
        )
    if not file_name.isprintable() or len(file_name.encode()) > _MAX_NAME_BYTES:
        raise InvalidRequest(
            f"{path}: expected a file name of {_MAX_NAME_BYTES} bytes at most, without control"
            " characters, at the end of the URL's path"
        )
    digest = hashlib.sha256(encoded).hexdigest()[:16]
    return ModelUrl(url=url, folder=folder, name=f"{URL_FOLDER}/{digest}/{file_name}")


def _file_name(url: str) -> str:
    try:
        return PurePosixPath(unquote(urlsplit(url).path)).name
    except ValueError:
        return ""
