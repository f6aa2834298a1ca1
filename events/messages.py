"""The text of a message of SQS or SNS: a request, or another source's event that holds some.

S3 and EventBridge put the same events into queues and topics that they would invoke a function
with: https://docs.aws.amazon.com/AmazonS3/latest/userguide/how-to-enable-disable-notification-intro.html
and https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-targets.html
"""

from collections.abc import Callable
from typing import Any

from events import asynchronous, eventbridge, s3, stepfunctions
from events.decode import request_of
from events.default_request_id import identified

Handle = Callable[[Any], dict[str, Any]]


def run(text: Any, message_id: str, handle: Handle) -> list[dict[str, Any]]:
    """Run the requests in a message; their responses, but for those that a task's token is told.

    Each request without an id gets the message's, so that all deliveries are the same job. Raises
    TryAgain, after all of them, if another delivery may help one.
    """
    told = _without_envelope(request_of(text))
    if stepfunctions.matches(told):
        stepfunctions.process_delivery(told, message_id, handle)
        return []
    if s3.matches(told):
        reply = s3.process(told, handle)
    elif eventbridge.matches(told):
        reply = eventbridge.process(told, handle)
    else:
        # What is not JSON is still text, and is refused as such.
        reply = asynchronous.run([identified(told, message_id)], handle)
    responses: list[dict[str, Any]] = reply["responses"]
    return responses


def _without_envelope(told: Any) -> Any:
    """What is in SNS's envelope, which a queue without raw delivery gets; else the same.

    https://docs.aws.amazon.com/sns/latest/dg/sns-message-and-json-formats.html
    """
    if (
        isinstance(told, dict)
        and told.get("Type") == "Notification"
        and isinstance(told.get("Message"), str)
        and "TopicArn" in told
    ):
        return request_of(told["Message"])
    return told
