"""The text of an SQS or SNS message: a request, or another source's event that holds requests.

S3 and EventBridge send queues and topics the same events that they invoke a function with:
https://docs.aws.amazon.com/AmazonS3/latest/userguide/how-to-enable-disable-notification-intro.html
and https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-targets.html
"""

from typing import Any

from events import asynchronous, eventbridge, s3, stepfunctions
from events.decode import json_or_text
from events.default_request_id import with_default_id
from events.event_context import EventContext, Response


def run(text: Any, message_id: str, context: EventContext) -> list[Response]:
    """Run the requests in a message, and return their responses.

    A request without an id gets `message_id`, so that every delivery is the same job. The response
    of a Step Functions task is not returned: the task got it through its token. Raises TryAgain,
    after the last request, if another delivery may succeed.
    """
    content = _without_envelope(json_or_text(text))
    if stepfunctions.matches(content):
        stepfunctions.process_delivery(content, message_id, context)
        return []
    if s3.matches(content):
        reply = s3.process(content, context)
    elif eventbridge.matches(content):
        reply = eventbridge.process(content, context)
    else:
        reply = asynchronous.run([with_default_id(content, message_id)], context)
    responses: list[Response] = reply["responses"]
    return responses


def _without_envelope(content: Any) -> Any:
    """The message inside SNS's envelope; content without an envelope is returned unchanged.

    A subscription without raw delivery puts the envelope into the queue:
    https://docs.aws.amazon.com/sns/latest/dg/sns-message-and-json-formats.html
    """
    if (
        isinstance(content, dict)
        and content.get("Type") == "Notification"
        and isinstance(content.get("Message"), str)
        and "TopicArn" in content
    ):
        return json_or_text(content["Message"])
    return content
