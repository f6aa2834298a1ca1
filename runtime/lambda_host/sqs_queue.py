"""One SQS queue for the poller: receive, delete and hide messages.

boto3 finds the endpoint and the credentials: AWS_ENDPOINT_URL_SQS, AWS_PROFILE, a role, …
https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_Operations.html
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from events import aws
from runtime.errors import LambdaComfyUIError

# SQS allows 20 seconds. A stop must wait for the open poll: a message that arrives in a poll whose
# process has ended stays hidden for its visibility timeout.
LONG_POLL_S = 5
_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S = 5, LONG_POLL_S + 10
_MAX_VISIBILITY_S = 43_200
# sqs.REGION.amazonaws.com, with a prefix for FIPS and VPC endpoints.
_REGION = re.compile(r"\bsqs(?:-fips)?\.([a-z]{2,}-[a-z-]+-\d+)\.")


class QueueError(LambdaComfyUIError):
    """SQS refused a call, or cannot be reached. The text is the operation and AWS's error code."""


@dataclass(frozen=True, slots=True)
class Message:
    """A received message: `raw` is an item of ReceiveMessage's `Messages`."""

    raw: dict[str, Any]

    @property
    def message_id(self) -> str:
        return str(self.raw["MessageId"])

    @property
    def receive_count(self) -> int:
        return int(self.raw.get("Attributes", {}).get("ApproximateReceiveCount", 1))


class SqsQueue:
    """The queue at `url`. Every method raises QueueError, and is safe to call from many threads."""

    def __init__(self, url: str, *, connections: int) -> None:
        self.url = url
        self._client = sqs_client(url, connections)
        self.arn = self._call("get_queue_attributes", AttributeNames=["QueueArn"])["Attributes"][
            "QueueArn"
        ]

    def receive(self, count: int, *, visibility_s: int) -> list[Message]:
        """Up to `count` messages, which SQS hides for `visibility_s`. Waits LONG_POLL_S at most."""
        answer = self._call(
            "receive_message",
            MaxNumberOfMessages=count,
            WaitTimeSeconds=LONG_POLL_S,
            VisibilityTimeout=visibility_s,
            MessageSystemAttributeNames=["All"],
            MessageAttributeNames=["All"],
        )
        return [Message(raw) for raw in answer.get("Messages", [])]

    def delete(self, messages: Sequence[Message]) -> None:
        self._batch("delete_message_batch", (_entry(message) for message in messages))

    def hide(self, messages: Sequence[Message], seconds: Sequence[float]) -> None:
        """Hide each message for its number of seconds from now; 0 makes it visible at once."""
        self._batch(
            "change_message_visibility_batch",
            (
                {**_entry(message), "VisibilityTimeout": min(round(hidden_s), _MAX_VISIBILITY_S)}
                for message, hidden_s in zip(messages, seconds, strict=True)
            ),
        )

    def close(self) -> None:
        self._client.close()

    def _batch(self, operation: str, entries: Iterable[dict[str, Any]]) -> None:
        numbered = [{"Id": str(number), **entry} for number, entry in enumerate(entries)]
        if not numbered:
            return
        answer = self._call(operation, Entries=numbered)
        if failed := answer.get("Failed"):
            codes = ", ".join(sorted({entry["Code"] for entry in failed}))
            raise QueueError(f"{operation} of {len(failed)} messages: {codes}")

    def _call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = getattr(self._client, operation)(
                QueueUrl=self.url, **arguments
            )
        except (ClientError, BotoCoreError) as error:
            raise QueueError(f"{operation}: {aws.error_name(error)}") from error
        return answer


def sqs_client(url: str, connections: int = 1) -> Any:
    """A client for the region in the URL, else for the configured region."""
    session = boto3.Session()
    match = _REGION.search(url)
    region = match[1] if match else session.region_name or "us-east-1"
    config = Config(
        connect_timeout=_CONNECT_TIMEOUT_S,
        read_timeout=_READ_TIMEOUT_S,
        retries={"mode": "standard"},
        max_pool_connections=connections,
    )
    return session.client("sqs", region_name=region, config=config)


def _entry(message: Message) -> dict[str, Any]:
    return {"ReceiptHandle": message.raw["ReceiptHandle"]}
