"""One SQS queue as a poller needs it: receive, delete, hide and show messages.

boto3 finds address and credentials by itself: AWS_ENDPOINT_URL_SQS, AWS_PROFILE, a role, …
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from runtime.errors import LambdaComfyUIError

# Of one poll. SQS allows 20, but a stop has to wait for the open poll: a message that comes in
# to a poll that nobody listens to stays hidden for its whole visibility timeout.
LONG_POLL_S = 5
_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S = 5, LONG_POLL_S + 10
_MAX_VISIBILITY_S = 43_200
# sqs.REGION.amazonaws.com, with a prefix for FIPS and VPC endpoints.
_REGION = re.compile(r"\bsqs(?:-fips)?\.([a-z]{2,}-[a-z-]+-\d+)\.")


class QueueError(LambdaComfyUIError):
    """SQS refused, or cannot be reached; the message has no address and no key in it."""


@dataclass(frozen=True, slots=True)
class Message:
    """A received message, as SQS gave it."""

    raw: dict[str, Any]

    @property
    def message_id(self) -> str:
        return str(self.raw["MessageId"])

    @property
    def receive_count(self) -> int:
        return int(self.raw.get("Attributes", {}).get("ApproximateReceiveCount", 1))


class SqsQueue:
    """The queue at `url`. Every method raises QueueError; they may be called by many threads."""

    def __init__(self, url: str, *, connections: int) -> None:
        self.url = url
        self._client = sqs_client(url, connections)
        self.arn = self._call("get_queue_attributes", AttributeNames=["QueueArn"])["Attributes"][
            "QueueArn"
        ]

    def receive(self, count: int, *, visibility_s: int) -> list[Message]:
        """Wait LONG_POLL_S at most for up to `count` messages, hidden for `visibility_s`."""
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
        """Let each message be invisible for so many seconds from now; 0 gives it back at once."""
        self._batch(
            "change_message_visibility_batch",
            (
                {**_entry(message), "VisibilityTimeout": min(round(each), _MAX_VISIBILITY_S)}
                for message, each in zip(messages, seconds, strict=True)
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
        except ClientError as error:
            raise QueueError(f"{operation}: {error.response['Error']['Code']}") from error
        except BotoCoreError as error:
            raise QueueError(f"{operation}: {type(error).__name__}") from error
        return answer


def sqs_client(url: str, connections: int = 1) -> Any:
    """A client for the region that the URL names, else for the configured one."""
    session = boto3.Session()
    named = _REGION.search(url)
    region = named[1] if named else session.region_name or "us-east-1"
    config = Config(
        connect_timeout=_CONNECT_TIMEOUT_S,
        read_timeout=_READ_TIMEOUT_S,
        retries={"mode": "standard"},
        max_pool_connections=connections,
    )
    return session.client("sqs", region_name=region, config=config)


def _entry(message: Message) -> dict[str, Any]:
    return {"ReceiptHandle": message.raw["ReceiptHandle"]}
