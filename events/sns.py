"""A message of an SNS topic that invokes the function: a request, or an event that holds some.

https://docs.aws.amazon.com/lambda/latest/dg/with-sns.html; the invocation is asynchronous.
"""

from collections.abc import Iterator
from typing import Any

from events import asynchronous, messages
from events.identity import identified


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
    """Run the requests in every message."""
    return asynchronous.run(requests(event), handle)


def requests(event: dict[str, Any]) -> Iterator[Any]:
    """The requests in every message; an invocation has one."""
    from aws_lambda_powertools.utilities.data_classes import SNSEvent  # noqa: PLC0415

    for record in SNSEvent(event).records:
        for request in messages.requests_in(record.sns.message):
            yield identified(request, record.sns.message_id)
