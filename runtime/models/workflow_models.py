"""The models that a workflow needs, and what is known of them.

A workflow in API format names files alone. One that ComfyUI's editor has saved may have, at its
loaders, the URL and the folder of each file
(https://docs.comfy.org/custom-nodes/workflow_templates#embed-models-in-templates).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from handler.choices import model_folder
from handler.workflow import MODEL_SUFFIXES
from runtime.models.manifest import Manifest, ModelFile, find_file


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedModel:
    """A file that a workflow names. `folder` and `url` are None where it does not tell them."""

    name: str
    needed_by: str
    folder: str | None = None
    url: str | None = None
    sha256: str | None = None


def models_of(workflow: Mapping[str, Any]) -> list[NamedModel]:
    """The models of a workflow in API format or as the editor saves it, each once."""
    nodes = workflow.get("nodes")
    found = _saved_models(workflow) if isinstance(nodes, list) else _api_models(workflow)
    return list({(model.folder, model.name): model for model in found}.values())


def place(
    models: Iterable[NamedModel], known: Sequence[Manifest], prefix: str
) -> tuple[list[ModelFile], list[str]]:
    """A file with sources for each model, and what is missing for each of the others.

    `known` are manifests whose files may be taken over. `prefix` is MODELS_S3_URI, or "".
    """
    files, not_found = [], []
    for model in models:
        file = find_file(known, model.folder, model.name)
        if file:
            files.append(replace(file, needed_by=file.needed_by or model.needed_by))
        elif model.folder is None:
            not_found.append(f"{model.name} ({model.needed_by}): its folder is not known")
        elif sources := _sources(model, prefix):
            files.append(
                ModelFile(
                    name=model.name,
                    folder=model.folder,
                    sources=sources,
                    sha256=model.sha256,
                    needed_by=model.needed_by,
                )
            )
        else:
            not_found.append(f"{model.folder}/{model.name} ({model.needed_by}): no source is known")
    return files, not_found


def _sources(model: NamedModel, prefix: str) -> tuple[str, ...]:
    copy = f"{prefix.rstrip('/')}/{model.folder}/{model.name}" if prefix else None
    return tuple(source for source in (copy, model.url) if source)


def _api_models(workflow: Mapping[str, Any]) -> Iterator[NamedModel]:
    for node_id, node in workflow.items():
        for input_name, value in node["inputs"].items():
            # The worker downloads a model by its URL, under a name of its own.
            if isinstance(value, str) and value.endswith(MODEL_SUFFIXES) and "://" not in value:
                class_type = node["class_type"]
                yield NamedModel(
                    name=value,
                    folder=model_folder(class_type, input_name),
                    needed_by=f"node {node_id}, {class_type}",
                )


def _saved_models(value: Any) -> Iterator[NamedModel]:
    """Of all nodes, also of subgraphs."""
    if isinstance(value, list):
        for item in value:
            yield from _saved_models(item)
    elif isinstance(value, dict):
        properties = value.get("properties")
        models = properties.get("models") if isinstance(properties, dict) else None
        for model in models if isinstance(models, list) else ():
            yield _saved_model(model, f"node {value.get('id')}, {value.get('type')}")
        for item in value.values():
            yield from _saved_models(item)


def _saved_model(model: Mapping[str, Any], needed_by: str) -> NamedModel:
    is_sha256 = str(model.get("hash_type", "")).upper() == "SHA256"
    return NamedModel(
        name=str(model.get("name")),
        folder=model.get("directory"),
        url=model.get("url"),
        sha256=str(model["hash"]).lower() if is_sha256 and model.get("hash") else None,
        needed_by=needed_by,
    )
