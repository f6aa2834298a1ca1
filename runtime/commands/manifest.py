"""`lambda-comfyui manifest`: writes a manifest of the models that a workflow names.

What a workflow says about its models is decided in runtime/models/workflow_models.py.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from handler.settings import Settings
from runtime.log import log
from runtime.models.errors import ManifestError
from runtime.models.manifest import SHIPPED, ModelFile, configured_manifests, read_manifest
from runtime.models.workflow_models import models_of, place


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "workflow", type=Path, help="a workflow of ComfyUI, saved or exported, or an event with one"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write there instead of to standard output"
    )


def run(args: argparse.Namespace, settings: Settings) -> int:
    """0 when all models have a source, else 1. Raises ManifestError."""
    known = [
        *configured_manifests(settings),
        *(read_manifest(path, settings) for path in sorted(SHIPPED.glob("*.yaml"))),
    ]
    models = models_of(_workflow(args.workflow))
    files, not_found = place(models, known, settings.models_s3_uri)
    content = {
        "name": args.workflow.stem,
        "files": [_entry(file) for file in files],
        **({"not_found": not_found} if not_found else {}),
    }
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)
    if args.out:
        args.out.write_text(text, "utf-8")
    else:
        sys.stdout.write(text)
    for missing in not_found:
        log(f"not placed: {missing}; add it to `files` with its folder and sources")
    return 1 if not_found else 0


def _workflow(path: Path) -> dict[str, Any]:
    """The workflow of a file: a bare one, or that of an event."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path} cannot be read: {error}") from error
    for key in ("input", "workflow_json"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not (_is_saved(content) or _is_exported(content)):
        raise ManifestError(
            f"{path} is no workflow: expected the JSON that ComfyUI saves or exports, or an event"
        )
    return content


def _is_saved(workflow: dict[str, Any]) -> bool:
    return isinstance(workflow.get("nodes"), list)


def _is_exported(workflow: dict[str, Any]) -> bool:
    return all(
        isinstance(node, dict) and "class_type" in node and isinstance(node.get("inputs"), dict)
        for node in workflow.values()
    )


def _entry(file: ModelFile) -> dict[str, Any]:
    entry = {
        "file": file.name,
        "folder": file.folder,
        "size": file.size_bytes or file.expected_bytes,
        "sha256": file.sha256,
        "sources": list(file.sources),
        "licence": file.licence,
        "needed_by": file.needed_by,
        "unverified": [] if file.size_bytes or not file.expected_bytes else ["size"],
    }
    return {key: value for key, value in entry.items() if value}
