"""What the handler tells the queue that a message came from, beside the reply to its batch.

- When a message that goes back may come again. Lambda leaves it hidden for what is left of the
  queue's visibility timeout, which AWS wants to be six times the function's: a job whose worker
  died would wait for an hour and a half.
  https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-errorhandling.html (backoff strategy)
- That a message is done with, once it is a dead letter: if its batch crashes before the reply, it
  would come again, and be a dead letter twice.
"""

import logging
import math
import random
from collections.abc import Sequence
from typing import Any

from events import aws

BACK_OFF_S = 10
# The other invocation has minutes to go, and each delivery counts towards the dead-letter queue.
RUNNING_BACK_OFF_S = 60
MAX_BACK_OFF_S = 900
_log = logging.getLogger("lambda-comfyui.sqs")


def back_off_s(receive_count: int, error_types: Sequence[str]) -> int:
    """Seconds until the next try of a message that was received so often; each the double.

    Up to half of it is left off by chance: what was killed by one job must not meet it each time.
    """
    base = RUNNING_BACK_OFF_S if "AlreadyRunning" in error_types else BACK_OFF_S
    # The exponent stays small: a queue without a redrive policy counts without end.
    doubled = min(base * 2.0 ** min(max(receive_count - 1, 0), 10), MAX_BACK_OFF_S)
    return math.ceil(doubled * random.uniform(0.5, 1))


def postpone(record: dict[str, Any], error_types: Sequence[str]) -> None:
    """Hide the message of an SQS record for its back-off. Never raises: it would come back later.

    Needs sqs:GetQueueUrl and sqs:ChangeMessageVisibility:
    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ChangeMessageVisibility.html
    """
    try:
        count = int(record["attributes"]["ApproximateReceiveCount"])
        _tell(
            record,
            "change_message_visibility",
            VisibilityTimeout=back_off_s(count, error_types),
        )
    except Exception as error:
        _log.info("the message's back-off was not set", extra={"reason": aws.reason(error)})


def delete(record: dict[str, Any]) -> None:
    """Take the message of an SQS record out of its queue. Never raises: Lambda does it, too.

    Needs sqs:GetQueueUrl and sqs:DeleteMessage:
    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_DeleteMessage.html
    """
    try:
        _tell(record, "delete_message")
    except Exception as error:
        _log.info("the message was not deleted yet", extra={"reason": aws.reason(error)})


def _tell(record: dict[str, Any], operation: str, **details: Any) -> None:
    """Call an operation of SQS for the message of a record; raises what boto3 raises, or KeyError,
    TypeError, ValueError for a record without the fields of a real one."""
    _, _, _, region, account, name = record["eventSourceARN"].split(":")
    receipt = record["receiptHandle"]
    client = aws.client("sqs", region)
    try:
        url = client.get_queue_url(QueueName=name, QueueOwnerAWSAccountId=account)["QueueUrl"]
        getattr(client, operation)(QueueUrl=url, ReceiptHandle=receipt, **details)
    finally:
        client.close()
