"""A message of an SNS topic that invokes the function: a request, or an event that holds some.

https://docs.aws.amazon.com/lambda/latest/dg/with-sns.html; the invocation is asynchronous.
"""

from typing import Any

from events import messages


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


def process(event: dict[str, Any], handle: messages.Handle) -> dict[str, Any]:
    """Run the requests in the message; an invocation has one."""
    from aws_lambda_powertools.utilities.data_classes import SNSEvent  # noqa: PLC0415

    responses: list[dict[str, Any]] = []
    for record in SNSEvent(event).records:
        responses += messages.run(record.sns.message, record.sns.message_id, handle)
    return {"responses": responses}
