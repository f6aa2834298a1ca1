"""The event that Lambda's event source mapping makes of messages, and the reply to it.

https://docs.aws.amazon.com/lambda/latest/dg/with-sqs.html (records),
https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-errorhandling.html (partial batch).
"""

import base64
import json
from collections.abc import Sequence
from typing import Any

from runtime.lambda_host.failures import InvocationResult
from runtime.lambda_host.sqs_queue import Message


def event_of(messages: Sequence[Message], queue_arn: str) -> bytes:
    """The event for a batch of messages, as JSON."""
    records = [_record(message.raw, queue_arn) for message in messages]
    return json.dumps({"Records": records}).encode()


def failed_messages(messages: Sequence[Message], result: InvocationResult) -> list[Message]:
    """The messages that go back to the queue: those that the reply lists.

    All of them after a function error and, as on Lambda, after a reply that is not a partial batch
    response or lists a message that was not in the batch.
    """
    if result.function_error is not None:
        return list(messages)
    try:
        failed_ids = _failed_ids(json.loads(result.payload))
    except (ValueError, TypeError, KeyError):
        return list(messages)
    if not failed_ids <= {message.message_id for message in messages}:
        return list(messages)
    return [message for message in messages if message.message_id in failed_ids]


def _failed_ids(reply: Any) -> set[str]:
    """Raises KeyError, TypeError or ValueError if the reply is not a partial batch response."""
    if not isinstance(reply, dict):
        return set()
    identifiers = [item["itemIdentifier"] for item in reply.get("batchItemFailures") or []]
    if not all(isinstance(identifier, str) and identifier for identifier in identifiers):
        raise ValueError("expected identifiers of messages")
    return set(identifiers)


def _record(raw: dict[str, Any], queue_arn: str) -> dict[str, Any]:
    record = {
        "messageId": raw["MessageId"],
        "receiptHandle": raw["ReceiptHandle"],
        "body": raw["Body"],
        "attributes": raw.get("Attributes", {}),
        "messageAttributes": {
            name: _attribute(value) for name, value in raw.get("MessageAttributes", {}).items()
        },
        "md5OfBody": raw["MD5OfBody"],
        "eventSource": "aws:sqs",
        "eventSourceARN": queue_arn,
        "awsRegion": queue_arn.split(":")[3],
    }
    if "MD5OfMessageAttributes" in raw:
        record["md5OfMessageAttributes"] = raw["MD5OfMessageAttributes"]
    return record


def _attribute(value: dict[str, Any]) -> dict[str, Any]:
    attribute = {"stringListValues": [], "binaryListValues": [], "dataType": value["DataType"]}
    if "StringValue" in value:
        attribute["stringValue"] = value["StringValue"]
    if "BinaryValue" in value:
        attribute["binaryValue"] = base64.b64encode(value["BinaryValue"]).decode()
    return attribute
