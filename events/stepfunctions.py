"""A task of Step Functions that waits for its token: the job's result is sent with the token.

https://docs.aws.amazon.com/step-functions/latest/dg/connect-to-resource.html#connect-wait-token
The token is as good as a password for the task. Nothing here logs it, nor a value that holds it.
"""

import json
from dataclasses import replace
from typing import Any

from events import asynchronous, aws
from events.contract.response_size import shrink
from events.default_request_id import with_default_id
from events.errors import AlreadyRunning, class_of
from events.event_context import EventContext, Response
from events.repeating_timer import RepeatingTimer
from events.source_log import log_of

TOKEN_NAMES = ("task_token", "TaskToken")
HEARTBEAT_S = 20.0
# https://docs.aws.amazon.com/step-functions/latest/apireference/API_SendTaskSuccess.html
MAX_OUTPUT_BYTES = 262_144
# https://docs.aws.amazon.com/step-functions/latest/apireference/API_SendTaskFailure.html
MAX_ERROR, MAX_CAUSE = 256, 32_768
# The task has ended: it timed out, was aborted, or got its result before.
_OVER = {"TaskTimedOut", "TaskDoesNotExist"}
# No task in this account and Region has the token. The job is run, for its invoker may wait.
_WITHOUT_TASK = _OVER | {"InvalidToken"}
_log = log_of("stepfunctions")


class NotTold(Exception):
    """The job has ended, but its result could not be sent to Step Functions."""


def matches(event: Any) -> bool:
    # A token is enough: even a task whose request is invalid must get that as its result.
    return isinstance(event, dict) and bool(_token_of(event))


def process(event: dict[str, Any], context: EventContext) -> Response:
    """Run the job with a heartbeat, and send its result to the task. Returns the response, too.

    A task that has ended before is not run; the reply is `{"skipped": …}`. Raises NotTold if the
    result cannot be sent.
    """
    token = _token_of(event)
    client = aws.client("stepfunctions")
    try:
        # The time until the first heartbeat began with the task, not with this invocation.
        if (reason := _send_heartbeat(client, token)) in _OVER:
            return {"skipped": f"Step Functions does not wait for this task: {reason}"}
        with RepeatingTimer(
            HEARTBEAT_S, lambda: _send_heartbeat(client, token) not in _WITHOUT_TASK
        ):
            response = context.handle(_request_in(event))
        _send_result(client, token, response)
    finally:
        client.close()
    return response


def process_delivery(event: dict[str, Any], delivery_id: str, context: EventContext) -> None:
    """The same for a message or event that may be delivered twice, with the same id.

    The task gets every result, and the state machine decides about retries. Raises TryAgain if
    another delivery runs the job: that one sends the result.
    """

    def run_once(task: Any, /, **_: Any) -> Response:
        response = context.handle(with_default_id(task, delivery_id))
        error = response.get("error")
        if error and class_of(error) is AlreadyRunning:
            raise asynchronous.try_again_after([error])
        return response

    process(event, replace(context, handle=run_once))


def _token_of(event: dict[str, Any]) -> str:
    tokens = (event.get(name) for name in TOKEN_NAMES)
    return next((token for token in tokens if isinstance(token, str) and token), "")


def _request_in(event: dict[str, Any]) -> dict[str, Any]:
    inner = event.get("input")
    # `"input.$": "$"` puts the whole input of the state there, which is a request itself.
    if isinstance(inner, dict) and "input" in inner and "workflow_json" not in inner:
        return inner
    return {name: value for name, value in event.items() if name not in TOKEN_NAMES}


def _send_heartbeat(client: Any, token: str) -> str:
    """Report that the job goes on. Returns why that was refused, or ""."""
    try:
        client.send_task_heartbeat(taskToken=token)
    except Exception as error:
        reason = aws.error_name(error)
        _log.warning("the task's heartbeat was refused", extra={"reason": reason})
        return reason
    return ""


def _send_result(client: Any, token: str, response: Response) -> None:
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    try:
        if error := response.get("error"):
            client.send_task_failure(
                taskToken=token, error=error["type"][:MAX_ERROR], cause=error["message"][:MAX_CAUSE]
            )
            return
        output = shrink(response, MAX_OUTPUT_BYTES, _size)
        client.send_task_success(taskToken=token, output=json.dumps(output))
    except (ClientError, BotoCoreError) as refusal:
        reason = aws.error_name(refusal)
        if reason not in _WITHOUT_TASK:
            raise NotTold(
                f"the job's result could not be sent to Step Functions: {reason}"
            ) from None
        _log.error("Step Functions does not wait for this job any more", extra={"reason": reason})


def _size(output: Response) -> int:
    return len(json.dumps(output).encode())
