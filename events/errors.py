"""What can go wrong with a job. Each class is one failure that a caller can act on.

JobError
├── InvalidRequest          the event breaks the contract                     never retried
├── WorkflowRejected        ComfyUI refuses the graph                         never retried
├── ExecutionFailed         a node raised                                     never retried
├── OutOfMemory             the GPU ran out of memory; it was freed after     retried
├── Cancelled               the job was interrupted from outside              never retried
├── DeadlineExceeded        the invocation's time ran out                     only if it never ran
├── WorkerUnavailable       ComfyUI did not start, or died                    retried
├── AlreadyRunning          another invocation runs the same request          retried
├── UploadFailed            the files are made, but S3 did not take them      retried
├── Misconfigured           the environment variables of this worker are wrong    retried
└── InternalError           a defect of this project                          retried
"""

from typing import Any


class JobError(Exception):
    """A failure that is answered, never raised at the caller.

    `type` is the stable name in `error.type`; `retryable` says whether the same job may work later.
    """

    retryable = False

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
        """`error` of the response: {type, message, retryable, node_id?, node_errors?}."""
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


class InvalidRequest(JobError):
    """The event breaks the contract; the message names the path, what was found and expected."""


class WorkflowRejected(JobError):
    """ComfyUI's validation refused the graph: unknown class, missing model, wrong input."""


class ExecutionFailed(JobError):
    """A node raised while the graph ran."""


class OutOfMemory(JobError):
    """The device had no memory left. Models are unloaded afterwards, so another try may pass."""

    retryable = True


class Cancelled(JobError):
    """The job was interrupted from outside."""


class DeadlineExceeded(JobError):
    """The invocation ran out of time. A job that never began may be tried again."""

    def __init__(self, message: str, *, began: bool) -> None:
        super().__init__(message)
        self.retryable = not began


class WorkerUnavailable(JobError):
    """ComfyUI did not come up, or died under the job."""

    retryable = True


class AlreadyRunning(JobError):
    """Another invocation has claimed the same request, and has not answered yet."""

    retryable = True


class UploadFailed(JobError):
    """The workflow ran, but not every file reached S3."""

    retryable = True


class InternalError(JobError):
    """An error that nobody foresaw; the log has the traceback."""

    retryable = True


class Misconfigured(JobError):
    """This worker's environment is wrong; another worker, or this one mended, can run the job."""

    retryable = True
