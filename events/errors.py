"""The root of every failure that a caller sees, and the failures of the event itself.

JobError                    any failure that a job's answer can carry (see handler/errors.py)
└── InvalidRequest          the event is not what the contract says
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
