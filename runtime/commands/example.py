"""`python -m runtime example`: what `make run` does, from an empty machine to files in a folder.

Installs what is missing, serves S3 locally, invokes the event, and downloads what its answer links.
"""

import argparse
import contextlib
import json
import mimetypes
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from handler.settings import Settings
from runtime.commands.invoke import (
    DEFAULT_TIMEOUT_S,
    EventFileError,
    invoked,
    outcome_of,
    print_response,
    read_event,
    until_stopped,
)
from runtime.commands.options import add_verbose
from runtime.local_s3 import LocalS3Error, local_s3
from runtime.progress import readable_size

_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S = 5.0, 60.0
_CHUNK_BYTES = 1024 * 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--event", required=True, metavar="FILE", help="the event, JSON")
    parser.add_argument(
        "--out", type=Path, default=Path("out"), metavar="DIR", help="where the files go"
    )
    add_verbose(parser)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """0 when the event completed and every file came back; 1 otherwise; 130, 143: a signal."""
    return until_stopped(lambda: _run(args, settings))


def _run(args: argparse.Namespace, settings: Settings) -> int:
    try:
        event = read_event(args.event)
        if status := _prepare(settings):
            return status
        with (
            tempfile.TemporaryDirectory(prefix="lambda-comfyui-s3-") as folder,
            local_s3(Path(folder)) as s3,
            invoked(
                event,
                environ={**os.environ, **s3.environ},
                timeout_s=DEFAULT_TIMEOUT_S,
                is_verbose=args.verbose,
            ) as result,
        ):
            print_response(result)
            is_fetched = fetch_outputs(json.loads(result.payload), args.out)
    except (EventFileError, LocalS3Error) as error:
        print(f"example: {error}", file=sys.stderr)
        return 1
    return 0 if outcome_of(result)[1] and is_fetched else 1


def _prepare(settings: Settings) -> int:
    """Install ComfyUI and generate stand-in weights, unless they are there."""
    # Not needed to reject an event.
    from runtime.commands import install, standins  # noqa: PLC0415

    # stdout is for the response alone.
    with contextlib.redirect_stdout(sys.stderr):
        return install.run(_defaults(install), settings) or standins.run(
            _defaults(standins), settings
        )


def _defaults(command: ModuleType) -> argparse.Namespace:
    """What the command line of `command` means without an argument."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args([])


def fetch_outputs(response: Any, out: Path) -> bool:
    """Download every output into OUT/REQUEST ID; False if one of them could not be had."""
    outputs: Sequence[dict[str, Any]] = []
    if isinstance(response, dict):
        outputs = response.get("output") or []
    is_complete = True
    used: set[str] = set()
    for output in outputs:
        if "url" in output:
            folder = out / _as_name(str(response["id"]))
            is_complete &= _fetch(output["url"], folder / _free_name(output, used))
        elif "upload_error" in output:
            print(f"not stored: {output['filename']}: {output['upload_error']}", file=sys.stderr)
            is_complete = False
    return is_complete


def _fetch(url: str, target: Path) -> bool:
    import requests  # noqa: PLC0415 - 100 ms, and the invocation comes first

    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            requests.get(url, stream=True, timeout=(_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S)) as answer,
            target.open("wb") as file,
        ):
            answer.raise_for_status()
            for chunk in answer.iter_content(_CHUNK_BYTES):
                file.write(chunk)
    except requests.RequestException as error:
        target.unlink(missing_ok=True)
        # Its text would show the signature of the link.
        print(f"cannot fetch {target.name}: {type(error).__name__}", file=sys.stderr)
        return False
    is_video = (mimetypes.guess_type(target.name)[0] or "").startswith("video/")
    size = readable_size(target.stat().st_size)
    hint = ", a video: open it in any player or browser" if is_video else ""
    print(f"{target} ({size}{hint})", file=sys.stderr)
    return True


def _free_name(output: dict[str, Any], used: set[str]) -> str:
    name = _as_name(PurePosixPath(output["filename"]).name)
    if name in used:
        name = f"{len(used)}_{name}"
    used.add(name)
    return name


def _as_name(text: str) -> str:
    """`text` as one component of a path, whatever an event put in it."""
    return re.sub(r"[^\w.-]", "_", text).lstrip(".") or "_"
