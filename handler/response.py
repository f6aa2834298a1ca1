"""What a job has come to so far, and the documented response made from it at any point."""

import base64
import time
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from typing import Any

from events.contract.response_size import MAX_RESPONSE_BYTES, encoded_size, fit_reply
from events.errors import Cancelled, JobError, UploadFailed
from events.job import Caller
from handler.artifacts import Artifact, Collector
from handler.clock import Timings
from handler.comfyui_api import HistoryEntry
from handler.execution import Execution
from handler.storage import Stored, Uploads

COMPLETED = "Processing complete."
_ROOM_FOR_ONE_FILE = 64


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
    _collector: Collector | None = None
    _uploads: Uploads | None = None

    def collect_with(self, collector: Collector, uploads: Uploads | None) -> None:
        self._collector, self._uploads = collector, uploads

    def collect(self, node_id: str, output: dict[str, Any]) -> None:
        """Take in the output of one node; its files begin to be uploaded."""
        assert self._collector is not None
        for artifact in self._collector.collect(node_id, output):
            upload = self._uploads.begin(artifact) if self._uploads else None
            self.artifacts.append((artifact, upload))

    def lost_from_cache(self) -> list[str]:
        """The nodes that did not run because of ComfyUI's cache, but whose files are gone.

        Their artifacts are forgotten: the nodes must run anew.
        """
        assert self.execution is not None
        ran = set(self.execution.nodes_executed)
        lost = [a.node_id for a, _ in self.artifacts if a.is_missing and a.node_id not in ran]
        if lost and self._collector:
            self.artifacts = [(a, f) for a, f in self.artifacts if a.node_id not in lost]
            self._collector.forget(lost)
        return lost

    def warn_of_nothing(self) -> None:
        """Say why a run that succeeded has no output."""
        if self._collector and self._collector.left_out_temp and not self.artifacts:
            self.warnings.append(
                "the workflow made only previews, which are left out: use a Save node,"
                " or set input.return_temp_outputs"
            )
        elif not self.artifacts:
            self.warnings.append("the workflow ran, but none of its nodes gave an output")

    def wait_for_uploads(self, timeout_s: float | None) -> None:
        """Wait for what is still on its way to S3; UploadFailed becomes the error if any failed."""
        give_up = None if timeout_s is None else time.monotonic() + timeout_s
        failed = [item for item in self._outputs(give_up) if "upload_error" in item]
        if failed and self.error is None:
            names = ", ".join(item["filename"] for item in failed[:5])
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
            "output": self._outputs(0.0),
            "timings": self.timings.as_dict(),
        }
        if self.error:
            body["error"] = self.error.as_dict()
        if self.warnings:
            body["warnings"] = self.warnings
        body = fit_reply(body)
        if self.return_base64:
            self._add_base64(body)
        return body

    def _comfyui_response(self, failure: JobError | None) -> dict[str, Any]:
        if self.execution is None:
            return {}
        history = {self.execution.prompt_id: self.entry} if self.entry else {}
        return {**history, "execution_details": self.execution.details(failure)}

    def _outputs(self, give_up: float | None) -> list[dict[str, Any]]:
        """Every artifact, with what became of its upload by `give_up` (a `time.monotonic()`)."""
        return [
            artifact.as_dict() | _stored(artifact, future, give_up)
            for artifact, future in self.artifacts
        ]

    def _add_base64(self, body: dict[str, Any]) -> None:
        left = MAX_RESPONSE_BYTES - encoded_size(body)
        for (artifact, _), item in zip(self.artifacts, body["output"], strict=False):
            if artifact.problem:
                continue
            try:
                left -= artifact.local_path.stat().st_size * 4 // 3 + _ROOM_FOR_ONE_FILE
                content = artifact.local_path.read_bytes() if left >= 0 else b""
            except OSError as error:
                body.setdefault("warnings", []).append(
                    f"return_outputs_as_base64: {artifact.filename}: {error.strerror}"
                )
                continue
            if left < 0:
                body.setdefault("warnings", []).append(
                    "return_outputs_as_base64: the files are larger than a response may be (6 MiB),"
                    f" {artifact.filename} and those after it are left out; read them by url"
                )
                return
            item["base64"] = base64.b64encode(content).decode()


def _status(failure: JobError | None) -> str:
    if failure is None:
        return "completed"
    return "cancelled" if isinstance(failure, Cancelled) else "failed"


def _stored(
    artifact: Artifact, future: "Future[Stored] | None", give_up: float | None
) -> dict[str, str]:
    if future is None:
        return {"upload_error": artifact.problem} if artifact.problem else {}
    try:
        stored = future.result(None if give_up is None else max(give_up - time.monotonic(), 0.0))
    except (FutureTimeout, CancelledError):
        return {"upload_error": "the upload was not finished when the invocation's time ran out"}
    return {"url": stored.url} if stored.url else {"upload_error": stored.upload_error}
