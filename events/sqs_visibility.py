"""When an SQS message can be received again: while its job runs, and after a failure.

All times of that rule are here; the handler (events/sqs.py) and the poller of the Lambda host
(runtime/lambda_host/sqs_poller.py) use the same ones.

- While a job runs, its message is hidden for HIDDEN_S at a time, so that the message of a killed
  handler comes again soon. AWS advises a visibility timeout of six times the function's timeout,
  which would take hours: https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-configure.html
- Either the handler does that or the poller that invoked it, never both. On Lambda it must be the
  handler: AWS's poller does not. The host's poller does it itself, because it goes on when the
  handler hangs or dies, and sends CALLER_HIDES_MESSAGES with the invocation.
- HIDDEN_S and CRASH_BACK_OFF_S are longer than the lease in handler/jobs/held_claim.py: at the
  next delivery the claim of a killed handler has ended. A test holds it.
- A message whose job another delivery runs comes again when the claim of that delivery can have
  ended. If it has not, that delivery goes on, and the message comes again after 25 minutes or more.
- Every other message that goes back is hidden for a back-off.
  https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-errorhandling.html
- A dead letter is deleted at once. If its batch were killed before the reply, it would come again,
  and be sent to the dead-letter queue twice.

Nothing here raises. If SQS refuses a call, the queue's own visibility timeout holds.
"""

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from events import aws
from events.asynchronous import TryAgain
from events.back_off import back_off_s
from events.errors import AlreadyRunning
from events.repeating_timer import RepeatingTimer
from events.source_log import log_of

HIDDEN_S = 60
# Two renewals may fail before the message can be received again.
RENEWALS_IN_HIDDEN_S = 3
# A batch that ends before costs no call, and no import of boto3.
FIRST_RENEWAL_AFTER_S = 1.0

BACK_OFF_S = 10
RUNNING_BACK_OFF_S = 60
CRASH_BACK_OFF_S = 20.0
# Beyond the end of a claim, so that messages of one killed batch do not come at once.
CLAIM_JITTER_S = 3
_DELIVERIES_AT_THE_END_OF_A_CLAIM = 2
_MAX_BACK_OFF_S = 900
_MAX_RUNNING_BACK_OFF_S = 7200

# https://docs.aws.amazon.com/lambda/latest/api/API_Invoke.html#API_Invoke_RequestSyntax
CALLER_HIDES_MESSAGES = json.dumps({"custom": {"hides-sqs-messages": True}})

# Of ChangeMessageVisibilityBatch.
_MAX_ENTRIES = 10
_log = log_of("sqs")


def caller_hides_messages(lambda_context: Any) -> bool:
    """Whether the invoker sent CALLER_HIDES_MESSAGES as client context."""
    client_context = getattr(lambda_context, "client_context", None)
    custom = getattr(client_context, "custom", None)
    return isinstance(custom, dict) and custom.get("hides-sqs-messages") is True


@contextmanager
def kept_hidden(
    records: Sequence[dict[str, Any]], time_left_s: Callable[[], float | None]
) -> Iterator[None]:
    """Keep the messages of SQS records hidden inside the block, while the invocation has time left.

    Needs sqs:GetQueueUrl and sqs:ChangeMessageVisibility. It ends with the first call if that is
    refused.
    """
    is_allowed = False

    def renew() -> bool:
        nonlocal is_allowed
        is_allowed = _hide(records) or is_allowed
        # An invocation that has run out of time hangs; Managed Instances do not stop it.
        left_s = time_left_s()
        return is_allowed and (left_s is None or left_s > 0)

    with RepeatingTimer(
        HIDDEN_S / RENEWALS_IN_HIDDEN_S, renew, first_after_s=FIRST_RENEWAL_AFTER_S
    ):
        yield


def back_off_after_error_s(receive_count: int, error: TryAgain) -> int:
    """Seconds until the next delivery of a message that the handler gives back.

    It grows with the number of deliveries. Up to half of it is left off at random, so that messages
    which were killed by one job do not meet that job each time.
    """
    if AlreadyRunning in error.errors:
        # The other invocation may have been killed: then its claim ends when it is not renewed.
        if receive_count <= _DELIVERIES_AT_THE_END_OF_A_CLAIM:
            return error.retry_after_s + random.randint(1, CLAIM_JITTER_S)
        # It was renewed. The other invocation may run for an hour and a half, and each delivery
        # counts towards the dead-letter queue.
        seconds = back_off_s(
            receive_count, first_s=RUNNING_BACK_OFF_S, most_s=_MAX_RUNNING_BACK_OFF_S, factor=5
        )
    else:
        seconds = back_off_s(receive_count, first_s=BACK_OFF_S, most_s=_MAX_BACK_OFF_S)
    return math.ceil(seconds * random.uniform(0.5, 1))


def back_off_after_crash_s(receive_count: int, first_s: float = CRASH_BACK_OFF_S) -> float:
    """Seconds until the next delivery of a message whose handler crashed or ran out of time.

    Nothing is left off: the claim of the killed handler must have ended.
    """
    return back_off_s(receive_count, first_s=first_s, most_s=_MAX_BACK_OFF_S)


def is_last_delivery(record: dict[str, Any]) -> bool:
    """Whether the queue moves the message of an SQS record away instead of delivering it again.

    Needs sqs:GetQueueUrl and sqs:GetQueueAttributes; False without them, and for a queue without a
    redrive policy.
    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-dead-letter-queues.html
    """
    try:
        count = int(record["attributes"]["ApproximateReceiveCount"])
        with _queue_of(record) as (sqs, url):
            reply = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["RedrivePolicy"])
        policy = json.loads(reply.get("Attributes", {}).get("RedrivePolicy", "{}"))
        most = policy.get("maxReceiveCount")
        return most is not None and count >= int(most)
    except Exception as error:
        reason = aws.error_name(error)
        _log.info("the queue's redrive policy is not known", extra={"reason": reason})
        return False


def postpone(failed: Sequence[tuple[dict[str, Any], TryAgain]]) -> None:
    """Hide the messages of SQS records, each with the error of its jobs, for their back-off.

    Needs sqs:GetQueueUrl and sqs:ChangeMessageVisibility:
    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ChangeMessageVisibility.html
    """
    if not failed:
        return
    try:
        with _queue_of(failed[0][0]) as (sqs, url):
            for record, error in failed:
                count = int(record["attributes"]["ApproximateReceiveCount"])
                sqs.change_message_visibility(
                    QueueUrl=url,
                    ReceiptHandle=record["receiptHandle"],
                    VisibilityTimeout=back_off_after_error_s(count, error),
                )
    except Exception as error:
        reason = aws.error_name(error)
        _log.info("the back-off of a message was not set", extra={"reason": reason})


def delete(record: dict[str, Any]) -> None:
    """Delete the message of an SQS record from its queue.

    Needs sqs:GetQueueUrl and sqs:DeleteMessage:
    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_DeleteMessage.html
    """
    try:
        with _queue_of(record) as (sqs, url):
            sqs.delete_message(QueueUrl=url, ReceiptHandle=record["receiptHandle"])
    except Exception as error:
        reason = aws.error_name(error)
        _log.info("the message was not deleted yet", extra={"reason": reason})


def _hide(records: Sequence[dict[str, Any]]) -> bool:
    """Hide the messages for HIDDEN_S from now; False if SQS refused."""
    try:
        entries = (
            {
                "Id": str(number),
                "ReceiptHandle": record["receiptHandle"],
                "VisibilityTimeout": HIDDEN_S,
            }
            for number, record in enumerate(records)
        )
        with _queue_of(records[0]) as (sqs, url):
            while batch := list(islice(entries, _MAX_ENTRIES)):
                # The reply names messages that are deleted already; they need nothing.
                sqs.change_message_visibility_batch(QueueUrl=url, Entries=batch)
    except Exception as error:
        reason = aws.error_name(error)
        _log.info("the messages were not kept hidden", extra={"reason": reason})
        return False
    return True


@contextmanager
def _queue_of(record: dict[str, Any]) -> Iterator[tuple[Any, str]]:
    """A client, and the URL of the record's queue.

    Raises boto3's errors, and KeyError, ValueError or AttributeError for an incomplete record.
    """
    _, _, _, region, account, name = record["eventSourceARN"].split(":")
    client = aws.client("sqs", region)
    try:
        url = client.get_queue_url(QueueName=name, QueueOwnerAWSAccountId=account)["QueueUrl"]
        yield client, url
    finally:
        client.close()
