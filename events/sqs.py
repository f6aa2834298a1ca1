"""An SQS batch: a body is a request, or another source's event; what is worth a retry goes back.

Powertools' batch module is imported with the first batch: a cold start for others is faster.
Reply: https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-errorhandling.html (partial batch).
"""

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from events import dead_letters, messages, sqs_visibility

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.batch import BatchProcessor
    from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord

Handle = Callable[[Any], dict[str, Any]]

# A child of the handler's logger: its lines have the same form.
_log = logging.getLogger("lambda-comfyui.sqs")


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


def process(
    event: dict[str, Any],
    handle: Handle,
    dead_letter_queue_url: str = "",
    time_left_s: float | None = None,
) -> dict[str, Any]:
    """Run every message of the batch; the reply lists those that go back to the queue.

    With a dead-letter queue, messages that failed for good go there; else they are only answered.
    `time_left_s` is the invocation's, None without a limit.
    """

    from aws_lambda_powertools.utilities.batch import process_partial_response  # noqa: PLC0415

    error_types: dict[str, Sequence[str]] = {}

    def run(record: "SQSRecord") -> None:
        try:
            _run(record.raw_event, handle, dead_letter_queue_url)
        except Exception as error:
            # Powertools sends the message back, so that none is lost, and does not say why.
            reason = f"{type(error).__name__}: {error}"
            told = {"message_id": record.message_id, "reason": reason}
            _log.warning("the message goes back to its queue", extra=told)
            error_types[record.message_id] = getattr(error, "error_types", ())
            raise

    processor = _processor(str(event["Records"][0].get("eventSourceARN")))
    # Powertools reads nothing of the Lambda context unless the record handler asks for it.
    with sqs_visibility.kept_hidden(event["Records"], time_left_s):
        reply = cast(dict[str, Any], process_partial_response(event, run, processor, context=None))
    back = {item["itemIdentifier"] for item in reply["batchItemFailures"]}
    # At the very end: what keeps the batch hidden would undo it.
    sqs_visibility.postpone(
        [
            (record, error_types.get(record["messageId"], ()))
            for record in event["Records"]
            if record["messageId"] in back
        ]
    )
    return reply


def _run(record: dict[str, Any], handle: Handle, dead_letter_queue_url: str) -> None:
    responses = messages.run(record.get("body"), record["messageId"], handle)
    failures = [response["error"] for response in responses if response.get("error")]
    if failures and dead_letter_queue_url:
        dead_letters.send(dead_letter_queue_url, record, failures[0])
        sqs_visibility.delete(record)


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
