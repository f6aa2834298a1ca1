"""The text of a message of SQS or SNS: a request, or another source's event that holds some.

S3 and EventBridge put the same events into queues and topics that they would invoke a function
with: https://docs.aws.amazon.com/AmazonS3/latest/userguide/how-to-enable-disable-notification-intro.html
and https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-targets.html
"""

from collections.abc import Iterable
from typing import Any

from events import eventbridge, s3
from events.text import request_of


def requests_in(text: Any) -> Iterable[Any]:
    """The requests in a message; one that is not JSON stays text and is refused as such.

    TryAgain is raised after them if the message tells of an object that cannot be read now.
    """
    told = _without_envelope(request_of(text))
    if s3.matches(told):
        return s3.requests(told)
    if eventbridge.matches(told):
        return eventbridge.requests(told)
    return [told]


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
