"""The errors of a job. Each class is one failure that a caller can act on.

JobError
├── InvalidRequest      the event breaks the contract                     not retryable
├── InputUnavailable    an input file cannot be fetched now               retryable
├── ModelUnavailable    a model file cannot be downloaded                 retryable
├── WorkflowRejected    ComfyUI refuses the graph                         not retryable
├── ExecutionFailed     a node raised, or gave a result without a file    not retryable
├── OutOfMemory         the GPU ran out of memory; models were unloaded   retryable
├── Cancelled           the job was interrupted from outside              not retryable
├── DeadlineExceeded    the invocation's time ran out                     if the job had only waited
├── WorkerUnavailable   ComfyUI did not start, or died; a broken machine  retryable
├── KilledTheWorker     ComfyUI died each time that it ran the job        not retryable
├── AlreadyRunning      another invocation runs the same request          retryable
├── IdConflict          the request's id belongs to another request       not retryable
├── UploadFailed        the files are made, but S3 did not take them      retryable
├── Misconfigured       a variable of this worker is wrong                retryable
└── InternalError       a defect of this project                          retryable

docs/contract.md has the same table for callers. Which error a failed node becomes is decided in
handler/node_failure.py, which one a refused graph becomes in handler/rejection.py.
"""

import math
from typing import Any

_CLASSES: dict[str, type["JobError"]] = {}


class JobError(Exception):
    """A failure that is part of the response; it is never raised to the caller of the function.

    `type`, the name of the class, is `error.type` of the response and does not change. `retryable`
    is True if the same job may succeed later.
    """

    retryable = False

    def __init_subclass__(cls) -> None:
        _CLASSES[cls.__name__] = cls

    def __init__(
        self,
        message: str,
        *,
        node_id: str | None = None,
        node_errors: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.node_id = node_id
        self.node_errors = node_errors

    @property
    def type(self) -> str:
        return type(self).__name__

    def as_dict(self) -> dict[str, Any]:
        """`error` of the response: {type, message, retryable, node_id?, node_errors?, …}."""
        body: dict[str, Any] = {
            "type": self.type,
            "message": self.message,
            "retryable": self.retryable,
        }
        if self.node_id is not None:
            body["node_id"] = self.node_id
        if self.node_errors:
            body["node_errors"] = self.node_errors
        return body


def class_of(error: dict[str, Any]) -> type[JobError]:
    """The class of a response's `error`, so that code compares classes and never names.

    Raises KeyError for a `type` that is not the name of a class here.
    """
    return _CLASSES[error["type"]]


class InvalidRequest(JobError):
    """The event breaks the contract; the message names the path and what is expected there."""


class InputUnavailable(JobError):
    """An input file of the workflow cannot be fetched now."""

    retryable = True


class ModelUnavailable(JobError):
    """A model file of the workflow did not reach the worker. Another worker may have it."""

    retryable = True


class WorkflowRejected(JobError):
    """ComfyUI's validation refused the graph: unknown class, missing model, wrong input."""


class ExecutionFailed(JobError):
    """A node raised while the graph ran, or named a result whose file it did not write."""


class OutOfMemory(JobError):
    """The GPU had no memory left. Models are unloaded afterwards, so a retry may succeed."""

    retryable = True


class Cancelled(JobError):
    """The job's end was requested, or the job was interrupted in ComfyUI."""


class DeadlineExceeded(JobError):
    """The invocation's time ran out. Retryable if the job never began, or waited for a model."""

    def __init__(self, message: str, *, began: bool) -> None:
        super().__init__(message)
        self.retryable = not began


class WorkerUnavailable(JobError):
    """ComfyUI did not start, or died while the job ran, or its machine made the job fail."""

    retryable = True


class KilledTheWorker(JobError):
    """ComfyUI has died twice while it ran this job, and the machine is sound."""


class AlreadyRunning(JobError):
    """Another invocation has claimed the same request, and its job has not ended.

    If that invocation was killed, its claim ends in `retry_after_s` seconds.
    """

    retryable = True

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = max(math.ceil(retry_after_s), 1)

    def as_dict(self) -> dict[str, Any]:
        return {**super().as_dict(), "retry_after_s": self.retry_after_s}


class IdConflict(JobError):
    """The id stands for another request, whose answer and files stay as they are."""


class UploadFailed(JobError):
    """The workflow ran, but not every file reached S3."""

    retryable = True


class Misconfigured(JobError):
    """An environment variable of this worker is wrong; another worker can run the job."""

    retryable = True


class InternalError(JobError):
    """An unexpected exception in this project; the log has the traceback."""

    retryable = True
