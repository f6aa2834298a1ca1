"""What the handler tells the queue that messages came from, beside the reply to their batch.

Without it, AWS's advice to hide messages for six times the function's timeout would keep each one
that goes back, or whose handler was killed, waiting for hours.
https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-configure.html

- While a batch runs, its messages are hidden for a minute at a time: if the handler is killed, they
  come again in a minute.
- A message that goes back comes again after a back-off.
  https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-errorhandling.html
- A dead letter is deleted at once: if its batch is killed before the reply, it would come again,
  and be a dead letter twice.

Nothing here raises: what SQS refuses is left to Lambda, which comes to the same end, later.
"""

import logging
import math
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from events import aws
from events.back_off import back_off_s
from events.repeating_timer import RepeatingTimer

HIDDEN_S = 60
# A batch that is answered earlier costs no call, and no import of boto3.
FIRST_BEAT_AFTER_S = 1.0
BACK_OFF_S = 10
RUNNING_BACK_OFF_S = 60
# Of SendMessageBatch and its sisters.
_MAX_ENTRIES = 10
_log = logging.getLogger("lambda-comfyui.sqs")


@contextmanager
def kept_hidden(records: Sequence[dict[str, Any]], time_left_s: float | None) -> Iterator[None]:
    """Hide the messages of a batch for HIDDEN_S at a time, until the block or its time is over.

    Needs sqs:GetQueueUrl and sqs:ChangeMessageVisibility.
    """
    until = math.inf if time_left_s is None else time.monotonic() + time_left_s
    is_allowed = False

    def beat() -> bool:
        nonlocal is_allowed
        is_allowed = _hide(records) or is_allowed
        # Beyond its time whoever runs it hangs, and Managed Instances do not stop it.
        return is_allowed and time.monotonic() < until

    with RepeatingTimer(HIDDEN_S / 3, beat, first_after_s=FIRST_BEAT_AFTER_S):
        yield


def hidden_for_s(receive_count: int, error_types: Sequence[str]) -> int:
    """Seconds until the next try of a message that was received so often; each a multiple.

    Up to half of it is left off by chance: what was killed by one job must not meet it each time.
    """
    if "AlreadyRunning" in error_types:
        # The other invocation may have an hour and a half to go, and each delivery counts towards
        # the dead-letter queue: 1, 5, 25 minutes, 2 hours.
        seconds = back_off_s(receive_count, first_s=RUNNING_BACK_OFF_S, most_s=7200, factor=5)
    else:
        seconds = back_off_s(receive_count, first_s=BACK_OFF_S, most_s=900)
    return math.ceil(seconds * random.uniform(0.5, 1))


def postpone(failed: Sequence[tuple[dict[str, Any], Sequence[str]]]) -> None:
    """Hide the messages of SQS records, each with its error types, for their back-off.

    Needs sqs:GetQueueUrl and sqs:ChangeMessageVisibility:
    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ChangeMessageVisibility.html
    """
    if not failed:
        return
    try:
        with _queue_of(failed[0][0]) as (sqs, url):
            for record, error_types in failed:
                count = int(record["attributes"]["ApproximateReceiveCount"])
                sqs.change_message_visibility(
                    QueueUrl=url,
                    ReceiptHandle=record["receiptHandle"],
                    VisibilityTimeout=hidden_for_s(count, error_types),
                )
    except Exception as error:
        _log.info("not every message's back-off was set", extra={"reason": aws.reason(error)})


def delete(record: dict[str, Any]) -> None:
    """Take the message of an SQS record out of its queue.

    Needs sqs:GetQueueUrl and sqs:DeleteMessage:
    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_DeleteMessage.html
    """
    try:
        with _queue_of(record) as (sqs, url):
            sqs.delete_message(QueueUrl=url, ReceiptHandle=record["receiptHandle"])
    except Exception as error:
        _log.info("the message was not deleted yet", extra={"reason": aws.reason(error)})


def _hide(records: Sequence[dict[str, Any]]) -> bool:
    """Hide them for HIDDEN_S from now on; False if SQS did not."""
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
            while some := list(islice(entries, _MAX_ENTRIES)):
                # Entries that are refused are of messages that are deleted already.
                sqs.change_message_visibility_batch(QueueUrl=url, Entries=some)
    except Exception as error:
        _log.info("the messages were not kept hidden", extra={"reason": aws.reason(error)})
        return False
    return True


@contextmanager
def _queue_of(record: dict[str, Any]) -> Iterator[tuple[Any, str]]:
    """A client, and the URL of the record's queue. Raises what boto3 raises, or KeyError,
    ValueError, AttributeError for a record without the fields of a real one."""
    _, _, _, region, account, name = record["eventSourceARN"].split(":")
    client = aws.client("sqs", region)
    try:
        url = client.get_queue_url(QueueName=name, QueueOwnerAWSAccountId=account)["QueueUrl"]
        yield client, url
    finally:
        client.close()
