"""An SQS batch: each body is a request, or an event that holds requests.

The reply is a partial batch response; messages with a retryable error go back to the queue:
https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-errorhandling.html. When they come again
is decided in events/sqs_visibility.py, what a body may be in events/messages.py. Powertools' batch
module is imported with the first batch, which keeps the cold start of other events short.
"""

from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from events import dead_letters, messages, sqs_visibility
from events.asynchronous import TryAgain
from events.event_context import EventContext, Response
from events.source_log import log_of

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.batch import BatchProcessor
    from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord

_log = log_of("sqs")


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


def process(event: dict[str, Any], context: EventContext) -> Response:
    """Run every message of the batch. The reply lists those that go back to the queue.

    A message that failed permanently leaves the queue; it is sent to the dead-letter queue if there
    is one.
    """
    from aws_lambda_powertools.utilities.batch import process_partial_response  # noqa: PLC0415

    errors: dict[str, TryAgain] = {}

    def run(record: "SQSRecord") -> None:
        try:
            _run(record.raw_event, context)
        except Exception as error:
            # Powertools puts the message into the reply, and does not log why.
            reason = f"{type(error).__name__}: {error}"
            fields = {"message_id": record.message_id, "reason": reason}
            _log.warning("the message goes back to its queue", extra=fields)
            if isinstance(error, TryAgain):
                errors[record.message_id] = error
            raise

    records = event["Records"]
    processor = _processor_for(str(records[0].get("eventSourceARN")))
    with (
        nullcontext()
        if context.caller_hides_messages
        else sqs_visibility.kept_hidden(records, context.time_left_s)
    ):
        # Powertools reads Lambda's context only for a record handler that asks for it.
        reply = cast(Response, process_partial_response(event, run, processor, context=None))
    failed_ids = {item["itemIdentifier"] for item in reply["batchItemFailures"]}
    # Outside the block, whose renewals would replace the back-off.
    sqs_visibility.postpone(
        [
            (record, errors.get(record["messageId"], TryAgain("")))
            for record in records
            if record["messageId"] in failed_ids
        ]
    )
    return reply


def _run(record: dict[str, Any], context: EventContext) -> None:
    context = replace(context, is_last_delivery=lambda: sqs_visibility.is_last_delivery(record))
    responses = messages.run(record.get("body"), record["messageId"], context)
    # A job that was cancelled has ended as somebody wished.
    failures = [
        response["error"]
        for response in responses
        if response.get("error") and response["status"] != "cancelled"
    ]
    if failures and context.dead_letter_queue_url:
        dead_letters.send(context.dead_letter_queue_url, record, failures[0])
        sqs_visibility.delete(record)


def _processor_for(queue_arn: str) -> "BatchProcessor":
    from aws_lambda_powertools.utilities.batch import (  # noqa: PLC0415
        BatchProcessor,
        EventType,
        SqsFifoPartialProcessor,
    )

    if queue_arn.endswith(".fifo"):
        # It gives back everything after the first failure, which keeps the order.
        processor: BatchProcessor = SqsFifoPartialProcessor()
    else:
        processor = BatchProcessor(EventType.SQS)
    # Otherwise a batch in which everything fails raises, and counts as a failed invocation.
    processor.raise_on_entire_batch_failure = False
    return processor
