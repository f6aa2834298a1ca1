"""A message of an SNS topic that invokes the function: its text is one request.

https://docs.aws.amazon.com/lambda/latest/dg/with-sns.html; the invocation is asynchronous.
"""

from typing import Any

from events import asynchronous
from events.text import request_of


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


def process(event: dict[str, Any], handle: asynchronous.Handle) -> dict[str, Any]:
    """Run the request in every message."""
    from aws_lambda_powertools.utilities.data_classes import SNSEvent  # noqa: PLC0415

    requests = (request_of(record.sns.message) for record in SNSEvent(event).records)
    return asynchronous.run(requests, handle)


def unwrap(body: Any) -> Any:
    """The request in SNS's envelope, which a queue without raw delivery gets; else the body.

    https://docs.aws.amazon.com/sns/latest/dg/sns-message-and-json-formats.html
    """
    if (
        isinstance(body, dict)
        and body.get("Type") == "Notification"
        and isinstance(body.get("Message"), str)
        and "TopicArn" in body
    ):
        return request_of(body["Message"])
    return body
