"""The outputs of one job: its artifacts, collected while it runs, and their uploads.

What counts as an artifact is decided in artifacts.py, how it is uploaded in storage.py.
"""

import math
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

from events.errors import ExecutionFailed, IdConflict, JobError, UploadFailed, WorkerUnavailable
from handler import deliveries
from handler.artifacts import Artifact, Collector, Fault
from handler.cancellation import CHECK_EVERY_S
from handler.storage import Stored, Uploads

_MAX_NAMES = 5
_NOT_FINISHED = "the upload had not finished when the job ended"


class JobOutputs:
    """The artifacts in the order of the run. Without `uploads` they stay on this machine."""

    def __init__(self, collector: Collector, uploads: Uploads | None) -> None:
        self._collector, self._uploads = collector, uploads
        self._outputs: list[tuple[Artifact, Future[Stored] | None]] = []

    @property
    def artifacts(self) -> list[Artifact]:
        return [artifact for artifact, _ in self._outputs]

    def add(self, node_id: str, output: dict[str, Any]) -> None:
        """Collect the output of one node, and begin to upload its files.

        An output that was added before changes nothing.
        """
        for artifact in self._collector.collect(node_id, output):
            upload = self._uploads.begin(artifact) if self._uploads else None
            self._outputs.append((artifact, upload))

    def nodes_with_lost_files(self, nodes_executed: Collection[str]) -> list[str]:
        """The nodes that ComfyUI's cache answered for, but whose files are not there any more."""
        return [
            artifact.node_id
            for artifact in self.artifacts
            if artifact.fault is Fault.MISSING and artifact.node_id not in nodes_executed
        ]

    def forget_missing(self) -> None:
        """Drop the outputs of nodes that named a missing file, which they may write later."""
        self.forget({a.node_id for a in self.artifacts if a.fault is Fault.MISSING})

    def failure(self) -> JobError | None:
        """Why a run is a failure although its nodes succeeded; None if every file is there.

        Another run makes a file that its node does not write no more than this one, so that is not
        retryable; what this machine could not do another one can.
        """
        faulty = [artifact for artifact in self.artifacts if artifact.fault]
        if not faulty:
            return None
        files = "; ".join(
            f"{artifact.filename}: {artifact.problem}" for artifact in faulty[:_MAX_NAMES]
        )
        if all(artifact.fault is Fault.MACHINE for artifact in faulty):
            return WorkerUnavailable(files)
        node_id = next(a.node_id for a in faulty if a.fault is not Fault.MACHINE)
        return ExecutionFailed(
            f"node {node_id} gave a result without a file. {files}", node_id=node_id
        )

    def forget(self, nodes: Collection[str]) -> None:
        """Drop the outputs of these nodes; they can be added again."""
        self._outputs = [item for item in self._outputs if item[0].node_id not in nodes]
        self._collector.forget(nodes)

    @property
    def are_stored(self) -> bool:
        """Whether every upload has ended."""
        return all(_has_ended(upload) for _, upload in self._outputs if upload)

    def wait(self, timeout_s: float | None, is_over: Callable[[], bool]) -> None:
        """Wait for the uploads that have begun, `timeout_s` seconds at most, or until `is_over`."""
        uploads = [upload for _, upload in self._outputs if upload]
        until = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while (left_s := until - time.monotonic()) > 0 and not is_over():
            if not wait(uploads, min(left_s, CHECK_EVERY_S)).not_done:
                return

    def upload_failure(self) -> UploadFailed | IdConflict | None:
        """The error that names the files which are not in the bucket now; None if all are."""
        uploads = [upload.result() for _, upload in self._outputs if upload and _has_ended(upload)]
        if conflicts := [stored for stored in uploads if stored.is_conflict]:
            return IdConflict(conflicts[0].upload_error)
        failed = [item for item in self.as_dicts() if "upload_error" in item]
        if not failed:
            return None
        names = ", ".join(item["filename"] for item in failed[:_MAX_NAMES])
        return UploadFailed(f"{names}: {failed[0]['upload_error']}")

    def record_delivery(self, worker_dir: Path) -> None:
        """Once the job is answered: record that no local file is needed, if all are in the bucket.

        A full disk may prevent it: then the files stay until they are old.
        """
        if self._uploads and not any("upload_error" in item for item in self.as_dicts()):
            collector = self._collector
            with suppress(OSError):
                deliveries.record(worker_dir, collector.folder_name(), collector.comfyui_files)

    def warnings(self) -> list[str]:
        """Why a run that succeeded has no output; empty if it has one."""
        if self._outputs:
            return []
        if self._collector.left_out_temp:
            return [
                "the workflow made only previews, which are left out: use a Save node,"
                " or set input.return_temp_outputs"
            ]
        return ["the workflow ran, but none of its nodes gave an output"]

    def as_dicts(self) -> list[dict[str, Any]]:
        """`output` of the response: every artifact, with the state of its upload now."""
        return [
            artifact.as_dict() | _stored(artifact, upload) for artifact, upload in self._outputs
        ]


def _has_ended(upload: "Future[Stored]") -> bool:
    return upload.done() and not upload.cancelled()


def _stored(artifact: Artifact, upload: "Future[Stored] | None") -> dict[str, str]:
    if upload is None:
        return {"upload_error": artifact.problem} if artifact.problem else {}
    if not _has_ended(upload):
        return {"upload_error": _NOT_FINISHED}
    stored = upload.result()
    if not stored.url:
        return {"upload_error": stored.upload_error}
    return {"url": stored.url, "url_expires_at": stored.url_expires_at}
