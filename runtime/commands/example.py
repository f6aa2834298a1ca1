"""`python -m runtime example`: what `make run` does, from an empty machine to files in a folder.

Installs what is missing, serves S3 locally, runs an event, and downloads the files by the URLs of
the response. Without an event it runs two samples: one that needs no model, as soon as ComfyUI is
installed, and a small version of the documented Wan 2.2 workflow.

stdout gets the path of each file, one a line; everything else goes to stderr. The response is kept
beside the files.
"""

import argparse
import contextlib
import json
import mimetypes
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from handler.settings import PROJECT, Settings
from runtime.commands.invoke import (
    DEFAULT_TIMEOUT_S,
    EventFileError,
    invoked,
    outcome_of,
    read_event,
    until_stopped,
)
from runtime.commands.options import add_verbose
from runtime.local_s3 import LocalS3Error, local_s3
from runtime.output_files import files_without_url, responses_in
from runtime.progress import readable_size

FIRST_VIDEO = PROJECT / "events" / "samples" / "direct_first_video.json"
SMALL_WAN = PROJECT / "events" / "samples" / "direct_wan22_t2v_small.json"
_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S = 5.0, 60.0
_CHUNK_BYTES = 1024 * 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--event", metavar="FILE", help="the event, JSON (default: two samples)")
    parser.add_argument(
        "--out", type=Path, default=Path("out"), metavar="DIR", help="where the files go"
    )
    add_verbose(parser)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """0: every event completed and every file is in OUT; 1: not; 130, 143: a signal."""
    return until_stopped(lambda: _run(args, settings))


def _run(args: argparse.Namespace, settings: Settings) -> int:
    try:
        if args.event is not None:
            is_success = _run_event(args, settings)
        else:
            is_success = _run_samples(args, settings)
    except (EventFileError, InstallError, LocalS3Error) as error:
        print(f"example: {error}", file=sys.stderr)
        return 1
    return 0 if is_success else 1


def _run_event(args: argparse.Namespace, settings: Settings) -> bool:
    event = read_event(args.event)
    _install_comfyui(settings)
    _generate_standins(settings)
    return run_to_files(event, settings, args.out, is_verbose=args.verbose)


def _run_samples(args: argparse.Namespace, settings: Settings) -> bool:
    _install_comfyui(settings)
    _say("\nfirst video: a sunrise, without a model")
    if not run_to_files(read_event(str(FIRST_VIDEO)), settings, args.out, is_verbose=args.verbose):
        return False
    _generate_standins(settings)
    _say("\nsecond video: the Wan 2.2 workflow at 192 x 192, noise from stand-in weights")
    _say("on two CPU cores, each of its two prompts is encoded in about half a minute")
    return run_to_files(read_event(str(SMALL_WAN)), settings, args.out, is_verbose=args.verbose)


def _install_comfyui(settings: Settings) -> None:
    # Not needed to refuse an event.
    from runtime.commands import install  # noqa: PLC0415

    with contextlib.redirect_stdout(sys.stderr):
        install.ensure_installed(settings)


def _generate_standins(settings: Settings) -> None:
    # As above.
    from runtime.commands import standins  # noqa: PLC0415

    standins.generate(settings.standins, settings.comfyui_interpreter, settings.comfyui_code)


def run_to_files(event: Any, settings: Settings, out: Path, *, is_verbose: bool) -> bool:
    """Run `event` with a local S3 server; its response and files go to OUT/REQUEST ID.

    False if it failed, or if a file is missing. Raises LocalS3Error.
    """
    with (
        tempfile.TemporaryDirectory(prefix="lambda-comfyui-s3-") as folder,
        local_s3(Path(folder)) as s3,
        invoked(
            event,
            environ={**os.environ, **s3.environ},
            timeout_s=DEFAULT_TIMEOUT_S,
            is_verbose=is_verbose,
        ) as result,
    ):
        answer = json.loads(result.payload)
        _keep(answer, out)
        is_complete = fetch_outputs(answer, out)
    for line in files_without_url(answer, settings.comfyui_data / "output"):
        _say(line)
    return outcome_of(result)[1] and is_complete


def _keep(answer: Any, out: Path) -> None:
    """Write the answer to OUT/REQUEST ID/response.json; to OUT itself if it has no request id."""
    has_id = isinstance(answer, dict) and "id" in answer
    path = (_job_folder(answer, out) if has_id else out) / "response.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(answer, indent=2) + "\n")
    _say(f"response: {path}")


def fetch_outputs(answer: Any, out: Path) -> bool:
    """Download every output with a URL into OUT/REQUEST ID; False if one is missing."""
    is_complete = True
    for response in responses_in(answer):
        for url, target in _downloads(response, _job_folder(response, out)):
            is_complete &= _fetch(url, target)
        is_complete &= not any("upload_error" in output for output in response["output"])
    return is_complete


def _downloads(response: dict[str, Any], folder: Path) -> Iterator[tuple[str, Path]]:
    used: set[str] = set()
    for output in response["output"]:
        if "url" in output:
            yield output["url"], folder / _free_name(output, used)


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
        # The error's text would show the signature of the URL.
        _say(f"cannot fetch {target.name}: {type(error).__name__}")
        return False
    is_video = (mimetypes.guess_type(target.name)[0] or "").startswith("video/")
    hint = "open this video in any player or browser" if is_video else "file"
    _say(f"{hint}, {readable_size(target.stat().st_size)}:")
    print(target, flush=True)
    return True


def _job_folder(response: dict[str, Any], out: Path) -> Path:
    return out / _as_name(str(response["id"]))


def _free_name(output: dict[str, Any], used: set[str]) -> str:
    name = _as_name(PurePosixPath(output["filename"]).name)
    if name in used:
        name = f"{len(used)}_{name}"
    used.add(name)
    return name


def _as_name(text: str) -> str:
    """`text` as one component of a path, whatever an event put in it."""
    return re.sub(r"[^\w.-]", "_", text).lstrip(".") or "_"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
