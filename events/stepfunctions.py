"""A task of Step Functions that waits for its token: the job's end is told through the token.

https://docs.aws.amazon.com/step-functions/latest/dg/connect-to-resource.html#connect-wait-token
The token is as good as a password for the task: nothing here logs it, nor what holds it.
"""

import json
import logging
from collections.abc import Callable
from typing import Any

from events import asynchronous, aws
from events.contract.response_size import smaller
from events.default_request_id import identified
from events.repeating_timer import RepeatingTimer

Handle = Callable[[Any], dict[str, Any]]

TOKEN_NAMES = ("task_token", "TaskToken")
HEARTBEAT_S = 20.0
# https://docs.aws.amazon.com/step-functions/latest/apireference/API_SendTaskSuccess.html
MAX_OUTPUT_BYTES = 262_144
# https://docs.aws.amazon.com/step-functions/latest/apireference/API_SendTaskFailure.html
MAX_ERROR, MAX_CAUSE = 256, 32_768
# Nobody waits for this task any more.
_OVER = {"TaskTimedOut", "TaskDoesNotExist"}
# Nobody ever did, in this account and Region; whoever invoked the function may wait.
_UNTOLD = _OVER | {"InvalidToken"}
# A child of the handler's logger: its lines have the same form.
_log = logging.getLogger("lambda-comfyui.stepfunctions")


class NotTold(Exception):
    """The job is over, but Step Functions could not be told; the failed invocation tells it."""


def matches(event: Any) -> bool:
    # Whatever else is in it: a task that is not told of a refusal waits until it times out.
    return isinstance(event, dict) and bool(_token(event))


def process(event: dict[str, Any], handle: Handle) -> dict[str, Any]:
    """Run the job with a heartbeat, and tell how it ended. The reply is the response, too.

    A task that is over already is not run; the reply says so. Raises NotTold if Step Functions
    cannot be reached.
    """
    token = _token(event)
    client = aws.client("stepfunctions")
    try:
        # Also because the time until the first heartbeat began when the task did.
        if (reason := _beat(client, token)) in _OVER:
            return {"skipped": f"Step Functions does not wait for this task: {reason}"}
        with RepeatingTimer(HEARTBEAT_S, lambda: _beat(client, token) not in _UNTOLD):
            response = handle(_request_in(event))
        _tell(client, token, response)
    finally:
        client.close()
    return response


def process_delivery(event: dict[str, Any], delivery_id: str, handle: Handle) -> None:
    """The same for an event that may be delivered twice, with the same id.

    The state machine is told of every end, and decides about retries itself. Raises TryAgain if
    another delivery runs the job, which will tell its end.
    """

    def run_once(task: Any) -> dict[str, Any]:
        response = handle(identified(task, delivery_id))
        error = response.get("error")
        if error and error["type"] == "AlreadyRunning":
            raise asynchronous.TryAgain(f"{error['type']}: {error['message']}", [error["type"]])
        return response

    process(event, run_once)


def _token(event: dict[str, Any]) -> str:
    found = (event.get(name) for name in TOKEN_NAMES)
    return next((token for token in found if isinstance(token, str) and token), "")


def _request_in(event: dict[str, Any]) -> dict[str, Any]:
    inner = event.get("input")
    # `"input.$": "$"` puts the whole input of the state there, which is a request itself.
    if isinstance(inner, dict) and "input" in inner and "workflow_json" not in inner:
        return inner
    return {name: value for name, value in event.items() if name not in TOKEN_NAMES}


def _beat(client: Any, token: str) -> str:
    """Tell Step Functions that the job goes on; why it was not taken, or an empty string."""
    try:
        client.send_task_heartbeat(taskToken=token)
    except Exception as error:
        code = aws.reason(error)
        _log.warning("the task's heartbeat was not taken", extra={"reason": code})
        return code
    return ""


def _tell(client: Any, token: str, response: dict[str, Any]) -> None:
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    try:
        if error := response.get("error"):
            client.send_task_failure(
                taskToken=token, error=error["type"][:MAX_ERROR], cause=error["message"][:MAX_CAUSE]
            )
            return
        output = smaller(response, MAX_OUTPUT_BYTES, _size)
        client.send_task_success(taskToken=token, output=json.dumps(output))
    except (ClientError, BotoCoreError) as refused:
        code = aws.reason(refused)
        if code not in _UNTOLD:
            raise NotTold(f"Step Functions was not told how the job ended: {code}") from None
        _log.error("Step Functions does not wait for this job any more", extra={"reason": code})


def _size(output: Any) -> int:
    return len(json.dumps(output).encode())
