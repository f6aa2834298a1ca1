"""`lambda-comfyui example`: what `make run` does, from an empty machine to files in a folder.

Installs what is missing, serves S3 locally, runs an event, and downloads the files by the URLs of
the response. Without an event it runs two samples: one that needs no model, as soon as ComfyUI is
installed, and a small version of the documented Wan 2.2 workflow.

stdout gets the path of each file, one a line; everything else goes to stderr. The response is kept
beside the files.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from handler.settings import PROJECT, Settings
from runtime.commands.invoke import (
    DEFAULT_TIMEOUT_S,
    invoked,
    outcome_of,
    read_event,
    until_stopped,
)
from runtime.commands.options import add_verbose
from runtime.errors import UsageError
from runtime.local_s3 import local_s3
from runtime.output_files import download_outputs, files_without_url, job_folder

FIRST_VIDEO = PROJECT / "events" / "samples" / "direct_first_video.json"
SMALL_WAN = PROJECT / "events" / "samples" / "direct_wan22_t2v_small.json"


class OutFolderError(UsageError):
    """The folder of --out cannot be created or written to."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--event", metavar="FILE", help="the event, JSON (default: two samples)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out"),
        metavar="DIR",
        help="folder of the files (default: out)",
    )
    add_verbose(parser)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """0: every event completed and every file is in OUT; 1: not; 130, 143: a signal.

    Raises OutFolderError, EventFileError, InstallError and LocalS3Error.
    """
    run_events = _run_samples if args.event is None else _run_event
    return until_stopped(lambda: 0 if run_events(args, settings) else 1)


def _make_out_folder(out: Path) -> None:
    """Before the job, which takes minutes. Raises OutFolderError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise OutFolderError(f"--out {out}: cannot write there: {error.strerror}") from error


def _run_event(args: argparse.Namespace, settings: Settings) -> bool:
    event = read_event(args.event)
    _make_out_folder(args.out)
    _install_comfyui(settings)
    _generate_standins(settings)
    return _run_to_files(event, args, settings)


def _run_samples(args: argparse.Namespace, settings: Settings) -> bool:
    _make_out_folder(args.out)
    _install_comfyui(settings)
    _say("\nfirst video: a sunrise, without a model")
    if not _run_to_files(read_event(str(FIRST_VIDEO)), args, settings):
        return False
    _generate_standins(settings)
    _say("\nsecond video: the Wan 2.2 workflow at 192 x 192, noise from stand-in weights")
    _say("on two CPU cores, each of its two prompts is encoded in about half a minute")
    return _run_to_files(read_event(str(SMALL_WAN)), args, settings)


def _install_comfyui(settings: Settings) -> None:
    # Not needed to refuse an event.
    from runtime.commands import install  # noqa: PLC0415

    with contextlib.redirect_stdout(sys.stderr):
        install.ensure_installed(settings)


def _generate_standins(settings: Settings) -> None:
    # As above.
    from runtime.commands import standins  # noqa: PLC0415

    standins.generate(settings.standins, settings.comfyui_interpreter, settings.comfyui_code)


def _run_to_files(event: Any, args: argparse.Namespace, settings: Settings) -> bool:
    """Run `event` with a local S3 server. False if it failed, or if one of its files is missing."""
    with (
        tempfile.TemporaryDirectory(prefix="lambda-comfyui-s3-") as folder,
        local_s3(Path(folder)) as s3,
        invoked(
            event,
            environ={**args.environ, **s3.environ},
            timeout_s=DEFAULT_TIMEOUT_S,
            is_verbose=args.verbose,
        ) as result,
    ):
        answer = json.loads(result.payload)
        for line in files_without_url(answer, settings.comfyui_data / "output"):
            _say(line)
        _keep_response(answer, args.out)
        is_complete = download_outputs(answer, args.out)
    return outcome_of(result)[1] and is_complete


def _keep_response(answer: Any, out: Path) -> None:
    """Write the answer to OUT/REQUEST ID/response.json; to OUT itself if it has no request id."""
    has_id = isinstance(answer, dict) and "id" in answer
    path = (job_folder(answer, out) if has_id else out) / "response.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(answer, indent=2) + "\n")
    _say(f"response: {path}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
