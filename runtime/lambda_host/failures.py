"""The result of an invocation, and the failures that the platform itself answers with.

Error types and messages are Lambda's, so that a caller finds what it knows.
"""

import json
from dataclasses import dataclass

from runtime.process.child import describe_exit


@dataclass(frozen=True, slots=True)
class InvocationResult:
    """What the caller of a function gets.

    `payload` is the function's response, JSON. With a `function_error`, the error's type, `payload`
    is the error's JSON, and `log_tail` has the last lines of the runtime client if it has ended.
    """

    payload: bytes
    function_error: str | None = None
    log_tail: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why invocations fail. One failure may end several of them.

    Lambda begins some messages with the request's id: these have `names_request`. `reported` is the
    JSON that a runtime client sent about the error; it goes to the caller instead of `message`.
    """

    error_type: str
    message: str = ""
    names_request: bool = False
    reported: bytes | None = None
    log_tail: tuple[str, ...] = ()

    def result_for(self, request_id: str) -> InvocationResult:
        """The result of the invocation with this id."""
        if self.reported is not None:
            return InvocationResult(self.reported, self.error_type, self.log_tail)
        prefix = f"RequestId: {request_id} Error: " if self.names_request else ""
        body = {"errorType": self.error_type, "errorMessage": prefix + self.message}
        return InvocationResult(json.dumps(body).encode(), self.error_type, self.log_tail)


# The error that the extension of this project reports when the machine can run no job: an
# environment that replaced this one would have the same machine.
WORKER_UNFIT = "Worker.Unfit"

# No client has begun with the invocation: the caller may try another host.
UNAVAILABLE = Failure(error_type="Runtime.Unavailable", message="the host is stopping")


def exit_failure(status: int) -> Failure:
    """The runtime client ended by itself; `status` is that of `Child.wait`."""
    return Failure(
        error_type="Runtime.ExitError",
        message=f"Runtime exited with error: {describe_exit(status)}",
        names_request=True,
    )


def extension_crash(status: int, log_tail: tuple[str, ...]) -> Failure:
    """An extension ended by itself; `status` is that of `Child.wait`."""
    return Failure(
        error_type="Extension.Crash",
        message=f"extension exited with {describe_exit(status)}",
        names_request=True,
        log_tail=log_tail,
    )


def timeout_failure(timeout_s: float) -> Failure:
    """The invocation took longer than the function's timeout."""
    return Failure(
        error_type="Sandbox.Timedout",
        message=f"Task timed out after {timeout_s:.2f} seconds",
        names_request=True,
    )


def init_timeout_failure(timeout_s: float) -> Failure:
    """The extensions and the runtime clients were not ready in time."""
    return Failure(
        error_type="Sandbox.Timedout", message=f"Init phase timed out after {timeout_s:.2f} seconds"
    )


def start_failure(error: Exception) -> Failure:
    """The machine refused a process, a thread or a socket (fork(2): EAGAIN, ENOMEM)."""
    return Failure(
        error_type="Runtime.StartError",
        message=f"the host cannot start a process, thread or socket: {error}",
    )
