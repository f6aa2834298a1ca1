"""What a job has come to so far, and the documented response made from it at any point."""

import base64
import json
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from typing import Any

from events.errors import JobError
from events.job import Caller
from handler.artifacts import Artifact
from handler.clock import Timings
from handler.comfyui import HistoryEntry
from handler.errors import Cancelled, UploadFailed
from handler.execution import Execution
from handler.storage import Stored

COMPLETED = "Processing complete."
# https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html
MAX_RESPONSE_BYTES = 6 * 1024 * 1024


@dataclass(slots=True)
class Outcome:
    """Filled stage by stage; `response` may be asked for after any of them."""

    caller: Caller
    timings: Timings = field(default_factory=Timings)
    execution: Execution | None = None
    entry: HistoryEntry | None = None
    error: JobError | None = None
    warnings: list[str] = field(default_factory=list)
    return_base64: bool = False
    artifacts: list[tuple[Artifact, "Future[Stored] | None"]] = field(default_factory=list)

    def wait_for_uploads(self, timeout_s: float | None) -> None:
        """Wait for what is still on its way to S3; UploadFailed becomes the error if any failed."""
        failed = [item for item in self._outputs(timeout_s) if "upload_error" in item]
        if failed and self.error is None:
            names = ", ".join(item["filename"] for item in failed)
            self.error = UploadFailed(f"{names}: {failed[0]['upload_error']}")

    def response(self) -> dict[str, Any]:
        """The documented response (events/contract/response.schema.json)."""
        # The workflow has run: a file that S3 did not take is told beside it, not instead of it.
        failure = None if isinstance(self.error, UploadFailed) else self.error
        body: dict[str, Any] = {
            "id": self.caller.request_id,
            "status": _status(failure),
            "message": failure.message if failure else COMPLETED,
            "comfyui_response": self._comfyui_response(failure),
            "output": self._outputs(0),
            "timings": self.timings.as_dict(),
        }
        if self.error:
            body["error"] = self.error.as_dict()
        if self.return_base64:
            self._add_base64(body)
        if self.warnings:
            body["warnings"] = self.warnings
        return body

    def _comfyui_response(self, failure: JobError | None) -> dict[str, Any]:
        if self.execution is None:
            return {}
        history = {self.execution.prompt_id: self.entry} if self.entry else {}
        return {**history, "execution_details": self.execution.details(failure)}

    def _outputs(self, timeout_s: float | None) -> list[dict[str, Any]]:
        return [
            artifact.as_dict() | _stored(artifact, future, timeout_s)
            for artifact, future in self.artifacts
        ]

    def _add_base64(self, body: dict[str, Any]) -> None:
        left = MAX_RESPONSE_BYTES - len(json.dumps(body))
        for (artifact, _), item in zip(self.artifacts, body["output"], strict=True):
            if artifact.problem:
                continue
            left -= artifact.local_path.stat().st_size * 4 // 3 + 64
            if left < 0:
                self.warnings.append(
                    "return_outputs_as_base64: the files are larger than a response may be (6 MiB),"
                    f" {artifact.filename} and those after it are left out; read them by url"
                )
                return
            item["base64"] = base64.b64encode(artifact.local_path.read_bytes()).decode()


def _status(failure: JobError | None) -> str:
    if failure is None:
        return "completed"
    return "cancelled" if isinstance(failure, Cancelled) else "failed"


def _stored(
    artifact: Artifact, future: "Future[Stored] | None", timeout_s: float | None
) -> dict[str, str]:
    if future is None:
        return {"upload_error": artifact.problem} if artifact.problem else {}
    try:
        stored = future.result(timeout_s)
    except FutureTimeout:
        return {"upload_error": "the upload was not finished when the invocation's time ran out"}
    return {"url": stored.url} if stored.url else {"upload_error": stored.upload_error}
