"""Keeps messages whose job failed for good: no retry helps them, but somebody may mend them.

https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html
"""

import json
import re
from typing import Any

from events import aws

MAX_MESSAGE = 1024
# What SQS takes are XML's characters.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class NotKept(Exception):
    """The dead-letter queue did not take the message."""


def send(queue_url: str, record: dict[str, Any], error: dict[str, Any]) -> None:
    """Put the message of an SQS record into the queue, unchanged, with what was wrong beside it.

    Raises NotKept.
    """
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    body = record.get("body")
    attributes = {
        "ErrorType": error["type"],
        "ErrorMessage": error["message"][:MAX_MESSAGE],
        "OriginalMessageId": record["messageId"],
    }
    try:
        client = aws.client("sqs")
        try:
            client.send_message(
                QueueUrl=queue_url,
                MessageBody=body if isinstance(body, str) and body else json.dumps(body),
                MessageAttributes={
                    name: {"DataType": "String", "StringValue": _NOT_XML.sub("?", value) or "?"}
                    for name, value in attributes.items()
                },
                **_place(queue_url, record),
            )
        finally:
            client.close()
    except (ClientError, BotoCoreError) as refused:
        raise NotKept(aws.reason(refused)) from None


def _place(queue_url: str, record: dict[str, Any]) -> dict[str, str]:
    """A FIFO queue has only FIFO dead-letter queues; a message keeps its group."""
    if not queue_url.endswith(".fifo"):
        return {}
    attributes = record.get("attributes")
    group = attributes.get("MessageGroupId") if isinstance(attributes, dict) else None
    return {
        "MessageGroupId": str(group or "dead"),
        "MessageDeduplicationId": record["messageId"],
    }
