"""Which files a function's answer names, and where those without a URL lie on this machine.

The answer is that of any event source: a response, several, or an HTTP reply around one. What a
response holds is decided in handler/response.py; the shapes around it in events/.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def responses_in(answer: Any) -> list[dict[str, Any]]:
    """The documented responses in `answer`; none in the answer to a queue, which names no file."""
    if not isinstance(answer, dict):
        return []
    if isinstance(body := answer.get("body"), str):
        answer = json.loads(body)
    responses: list[dict[str, Any]] = answer.get("responses", [answer])
    return [response for response in responses if "output" in response]


def files_without_url(answer: Any, output_folder: Path) -> Iterator[str]:
    """A line for each output of `answer` that has no URL: its path, or why there is no file.

    `output_folder` is ComfyUI's: the answer to a queue names no file, so the line names the folder.
    """
    if isinstance(answer, dict) and "batchItemFailures" in answer:
        yield f"files: {output_folder}/<request id> (the answer to a queue does not name them)"
    for response in responses_in(answer):
        yield from (_line(output) for output in response["output"] if "url" not in output)


def _line(output: dict[str, Any]) -> str:
    path, problem = Path(output["local_path"]), output.get("upload_error", "")
    if not path.exists():
        return f"no file: {path}: {problem or 'it is not there any more'}"
    return f"file: {path}" + (f" (not uploaded: {problem})" if problem else "")
