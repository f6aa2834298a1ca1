"""The files that a function's answer names: downloads, and the paths of files without a URL.

The answer is that of any event source: a response, several, or an HTTP reply around one. What a
response holds is decided in handler/response.py; the shapes around it in events/.
"""

import json
import mimetypes
import re
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from runtime.progress import readable_size

_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S = 5.0, 60.0
_CHUNK_BYTES = 1024 * 1024


def responses_in(answer: Any) -> list[dict[str, Any]]:
    """The documented responses in `answer`; none in the answer to a queue, and in an error."""
    if not isinstance(answer, dict):
        return []
    if isinstance(body := answer.get("body"), str):
        answer = json.loads(body)
    responses: list[dict[str, Any]] = answer.get("responses", [answer])
    return [response for response in responses if "status" in response]


def outputs_of(response: dict[str, Any]) -> list[dict[str, Any]]:
    """The items of `output`: see events/contract/response.schema.json."""
    outputs: list[dict[str, Any]] = response.get("output", [])
    return outputs


def files_without_url(answer: Any, output_folder: Path) -> Iterator[str]:
    """A line for each output of `answer` that has no URL: its path, or why there is no file.

    `output_folder` is ComfyUI's: the answer to a queue names no file, so the line names the folder.
    """
    if isinstance(answer, dict) and "batchItemFailures" in answer:
        yield f"files: {output_folder}/<request id> (the answer to a queue does not name them)"
    for response in responses_in(answer):
        yield from (_line(output) for output in outputs_of(response) if "url" not in output)


def download_outputs(answer: Any, out: Path) -> bool:
    """Download every output with a URL into OUT/REQUEST ID, and print its path to stdout.

    False if one could not be downloaded, or had not been uploaded.
    """
    is_complete = True
    for response in responses_in(answer):
        for url, target in _downloads(response, job_folder(response, out)):
            is_complete &= _download(url, target)
        is_complete &= not any("upload_error" in output for output in outputs_of(response))
    return is_complete


def _downloads(response: dict[str, Any], folder: Path) -> Iterator[tuple[str, Path]]:
    used: set[str] = set()
    for output in outputs_of(response):
        if "url" in output:
            yield output["url"], folder / _free_name(output, used)


def _download(url: str, target: Path) -> bool:
    import requests  # noqa: PLC0415 - 100 ms, and only a download needs it

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
        _say(f"cannot download {target.name}: {type(error).__name__}")
        return False
    is_video = (mimetypes.guess_type(target.name)[0] or "").startswith("video/")
    hint = "open this video in any player or browser" if is_video else "file"
    _say(f"{hint}, {readable_size(target.stat().st_size)}:")
    print(target, flush=True)
    return True


def job_folder(response: dict[str, Any], out: Path) -> Path:
    """OUT/REQUEST ID, where the id is made a valid name."""
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


def _line(output: dict[str, Any]) -> str:
    path, problem = Path(output["local_path"]), output.get("upload_error", "")
    if not path.exists():
        return f"no file: {path}: {problem or 'it is not there any more'}"
    return f"file: {path}" + (f" (not uploaded: {problem})" if problem else "")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
