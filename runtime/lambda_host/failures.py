"""What an invocation ends with, and the errors that the platform itself answers.

Types and words are Lambda's, so that a caller finds what it knows.
"""

import json
from dataclasses import dataclass

from runtime.process.child import describe_exit


@dataclass(frozen=True, slots=True)
class InvocationResult:
    """What the caller of a function gets.

    `function_error` is the error's type, and then `payload` is its JSON body and `log_tail` holds
    the last lines that the runtime client wrote, if it did not survive.
    """

    payload: bytes
    function_error: str | None = None
    log_tail: tuple[str, ...] = ()


def failure(error_type: str, message: str) -> InvocationResult:
    """An error of the platform, in the shape that Lambda gives it."""
    body = json.dumps({"errorType": error_type, "errorMessage": message})
    return InvocationResult(body.encode(), error_type)


# Nobody began with it: whoever gave the event may give it to somebody else.
UNAVAILABLE = failure("Runtime.Unavailable", "the host is stopping")


def exit_error(status: int, request_id: str) -> InvocationResult:
    """What Lambda answers when the client ended by itself."""
    message = f"RequestId: {request_id} Error: Runtime exited with error: {describe_exit(status)}"
    return failure("Runtime.ExitError", message)


def timeout_error(timeout_s: float, request_id: str) -> InvocationResult:
    """What Lambda answers when the function's time is over."""
    message = f"RequestId: {request_id} Error: Task timed out after {timeout_s:.2f} seconds"
    return failure("Sandbox.Timedout", message)


def init_timeout_error(timeout_s: float) -> InvocationResult:
    """What Lambda answers when nobody was ready in time."""
    message = f"Init phase timed out after {timeout_s:.2f} seconds"
    return failure("Sandbox.Timedout", message)


def out_of_means(error: Exception) -> InvocationResult:
    """The machine gave no process, thread or socket (fork(2): EAGAIN, ENOMEM)."""
    return failure("Runtime.StartError", f"the host cannot start what it needs: {error}")
