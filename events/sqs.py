"""An SQS batch: every message body is one request; only messages worth a retry go back.

Powertools' batch module is imported with the first batch: a cold start for others is faster.
Reply: https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-errorhandling.html (partial batch).
"""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.batch import BatchProcessor
    from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord

Handle = Callable[[Any], dict[str, Any]]


class GoesBack(Exception):
    """The message stays in its queue: the job may work later."""


def matches(event: Any) -> bool:
    if not isinstance(event, dict) or not isinstance(event.get("Records"), list):
        return False
    records = event["Records"]
    return bool(records) and all(
        isinstance(record, dict)
        and record.get("eventSource") == "aws:sqs"
        and isinstance(record.get("messageId"), str)
        for record in records
    )


def process(event: dict[str, Any], handle: Handle) -> dict[str, Any]:
    """Run every message of the batch; the reply lists those that go back to the queue."""

    from aws_lambda_powertools.utilities.batch import process_partial_response  # noqa: PLC0415

    def run(record: "SQSRecord") -> dict[str, Any]:
        response = handle(request_of(record.raw_event.get("body")))
        error = response.get("error")
        if error and error["retryable"]:
            raise GoesBack(error["type"])
        return response

    processor = _processor(str(event["Records"][0].get("eventSourceARN")))
    # Powertools reads nothing of the Lambda context unless the record handler asks for it.
    reply = process_partial_response(event, run, processor, context=None)
    return cast(dict[str, Any], reply)


def request_of(body: Any) -> Any:
    """The request in a message body; a body that is not JSON stays text and is refused as such."""
    try:
        return json.loads(body)
    except (ValueError, TypeError, RecursionError):
        return body


def _processor(queue_arn: str) -> "BatchProcessor":
    from aws_lambda_powertools.utilities.batch import (  # noqa: PLC0415
        BatchProcessor,
        EventType,
        SqsFifoPartialProcessor,
    )

    if queue_arn.endswith(".fifo"):
        # In a FIFO queue nothing may overtake the message that goes back.
        processor: BatchProcessor = SqsFifoPartialProcessor()
    else:
        processor = BatchProcessor(EventType.SQS)
    # A raised exception would be logged as a failed invocation, with the same messages going back.
    processor.raise_on_entire_batch_failure = False
    return processor
