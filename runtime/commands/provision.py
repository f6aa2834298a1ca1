"""`lambda-comfyui provision`: brings models and what else a worker needs, before anything starts.

First the models of the manifests, then the benchmark's workflow, then the script. Where models
belong is decided in handler/model_folders.py; how they come, in runtime/models/download.py.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from handler.model_folders import model_path
from handler.settings import Settings
from runtime.log import log
from runtime.models.download import Downloader, FileState
from runtime.models.download_progress import download_display
from runtime.models.files_in_place import damaged_files
from runtime.models.manifest import (
    Manifest,
    ModelFile,
    configured_manifests,
    find_manifest,
    read_manifest,
)
from runtime.models.merged_files import merged_files
from runtime.models.s3 import manifest_of_prefix
from runtime.models.space import RESERVE_BYTES, check_space
from runtime.provisioning import put_benchmark, run_script

_SHOW_EVERY_S = 0.25


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "manifests",
        nargs="*",
        metavar="MANIFEST",
        help="a manifest of infra/models, or a path; default: MODEL_MANIFESTS, else MODELS_S3_URI",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--stream",
        action="store_true",
        help="leave the models of MODEL_MANIFESTS to the worker, which downloads while it runs",
    )
    which.add_argument(
        "--verify",
        action="store_true",
        help="compare the models that are there with the SHA-256 of their manifests, too",
    )


def run(args: argparse.Namespace, settings: Settings) -> int:
    """0 when everything is there, else the status of the first failure (runtime/models/errors.py).

    Raises LambdaComfyUIError.
    """
    began = time.monotonic()
    is_streamed = args.stream and bool(settings.model_manifests)
    manifests = [] if is_streamed else _manifests(args.manifests, settings)
    files = _with_targets(manifests, settings)
    check_space(files)
    damaged = damaged_files(files) if args.verify else []
    states = _download(files, settings)
    missing = [state.error for state in states if state.error]
    for error in (*damaged, *missing):
        log(f"models: {error}")
    if missing:
        log("models: what came is kept, and the next run goes on from there")
    if failures := [*damaged, *missing]:
        return failures[0].exit_status
    if states:
        size = sum(state.done_bytes for state in states) / 1e9
        seconds = time.monotonic() - began
        log(f"models: {len(states)} files, {size:.2f} GB, are in place after {seconds:.0f} s")
    elif not is_streamed and not manifests:
        log("models: none: name a manifest, or set MODEL_MANIFESTS or MODELS_S3_URI")
    put_benchmark(settings)
    run_script(settings, args.environ)
    return 0


def _manifests(names: Sequence[str], settings: Settings) -> list[Manifest]:
    if names:
        return [read_manifest(find_manifest(name), settings) for name in names]
    if settings.model_manifests or not settings.models_s3_uri:
        return configured_manifests(settings)
    return [manifest_of_prefix(settings.models_s3_uri, settings)]


def _with_targets(
    manifests: Sequence[Manifest], settings: Settings
) -> list[tuple[ModelFile, Path]]:
    return [
        (file, model_path(file.folder, file.name, settings)) for file in merged_files(manifests)
    ]


def _download(files: Sequence[tuple[ModelFile, Path]], settings: Settings) -> list[FileState]:
    targets = [target for _, target in files]
    with (
        Downloader(settings, kept_bytes=RESERVE_BYTES) as downloader,
        download_display() as display,
    ):
        for file, target in files:
            downloader.add(file, target)
        while not downloader.wait(targets, _SHOW_EVERY_S):
            display.update(downloader.states())
        states = downloader.states()
        display.update(states)
    return states
