"""A notification of an SNS topic: its message is a request, or an event that holds requests.

https://docs.aws.amazon.com/lambda/latest/dg/with-sns.html. The invocation is asynchronous; what a
message may be is decided in events/messages.py.
"""

from typing import Any

from events import messages
from events.event_context import EventContext, Response


def matches(event: Any) -> bool:
    records = event.get("Records") if isinstance(event, dict) else None
    if not isinstance(records, list) or not records:
        return False
    return all(
        isinstance(record, dict)
        # SNS writes it with a capital E, unlike every other source.
        and "aws:sns" in (record.get("EventSource"), record.get("eventSource"))
        and isinstance(record.get("Sns"), dict)
        and isinstance(record["Sns"].get("Message"), str)
        and isinstance(record["Sns"].get("MessageId"), str)
        for record in records
    )


def process(event: dict[str, Any], context: EventContext) -> Response:
    """Run the requests in the message (an invocation has one). Raises TryAgain."""
    from aws_lambda_powertools.utilities.data_classes import SNSEvent  # noqa: PLC0415

    responses: list[Response] = []
    for record in SNSEvent(event).records:
        responses += messages.run(record.sns.message, record.sns.message_id, context)
    return {"responses": responses}
