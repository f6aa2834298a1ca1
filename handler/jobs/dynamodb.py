"""Job records in a DynamoDB table: one item a record, every change a conditional write.

The table, which template.yaml creates, has the string key `id` and the time to live `expiration`.
Its user needs GetItem, PutItem, UpdateItem and DeleteItem. What an item holds is decided in
`record`.
"""

from collections.abc import Callable
from typing import Any

import boto3
from boto3.dynamodb.types import TypeDeserializer, TypeSerializer
from botocore.config import Config

from handler.jobs.record import (
    JobRecord,
    Lease,
    Status,
    UnreadableRecord,
    from_item,
    in_ms,
    to_item,
)

# A table that does not answer delays a job by seconds; boto3's own limits are minutes.
_CONFIG = Config(
    connect_timeout=2, read_timeout=3, retries={"mode": "standard", "total_max_attempts": 2}
)
# `#owner`, `#status` and `#request`: the first two names are reserved words in expressions.
# https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/ReservedWords.html
_NAMES = {"#owner": "owner", "#status": "status", "#request": "request"}
_IS_OWN = "#owner = :owner"
_IS_ABSENT = "attribute_not_exists(id)"
_IS_SAME_RUNNING = "#status = :running AND #request = :request"
_HAS_LAPSED = f"({_IS_SAME_RUNNING} AND in_progress_expiration < :now_ms)"
_IS_RELEASED = f"({_IS_SAME_RUNNING} AND #owner = :none)"
# DynamoDB removes an expired item some time later, within a few days.
_HAS_EXPIRED = "expiration <= :now"


class DynamoDBStore:
    """The table with the name `identity`."""

    # An item may have 400 KB, and its other attributes need a little of it:
    # https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Constraints.html
    max_response_bytes: int | None = 390_000

    def __init__(self, table: str) -> None:
        self.identity = table
        self._client = boto3.session.Session().client("dynamodb", config=_CONFIG)

    def claim(self, record: JobRecord, now: float) -> JobRecord | None:
        error = self._write(
            self._client.put_item,
            Item=_typed(to_item(record)),
            ConditionExpression=f"{_IS_ABSENT} OR {_HAS_EXPIRED} OR {_HAS_LAPSED} OR {_IS_OWN}",
            ExpressionAttributeNames=_NAMES,
            ExpressionAttributeValues=_typed(
                {
                    ":owner": record.lease.owner,
                    ":running": Status.RUNNING.value,
                    ":request": record.request,
                    ":now": int(now),
                    ":now_ms": in_ms(now),
                }
            ),
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
        )
        return None if error is None else _record_in(error)

    def get(self, record_id: str, now: float) -> JobRecord | None:
        answer = self._client.get_item(
            TableName=self.identity, Key=_typed({"id": record_id}), ConsistentRead=True
        )
        record = _read(answer["Item"]) if "Item" in answer else None
        return record if record and record.expires_at > int(now) else None

    def renew(self, record_id: str, lease: Lease) -> bool:
        error = self._write(
            self._client.update_item,
            Key=_typed({"id": record_id}),
            UpdateExpression="SET in_progress_expiration = :until",
            ConditionExpression=_IS_OWN,
            ExpressionAttributeNames={"#owner": "owner"},
            ExpressionAttributeValues=_typed({":owner": lease.owner, ":until": in_ms(lease.until)}),
        )
        return error is None

    def complete(self, record: JobRecord) -> bool:
        error = self._write(
            self._client.put_item,
            Item=_typed(to_item(record)),
            ConditionExpression=f"{_IS_ABSENT} OR {_IS_OWN} OR {_IS_RELEASED}",
            ExpressionAttributeNames=_NAMES,
            ExpressionAttributeValues=_typed(
                {
                    ":owner": record.lease.owner,
                    ":running": Status.RUNNING.value,
                    ":request": record.request,
                    ":none": "",
                }
            ),
        )
        return error is None

    def take_delivery(self, record_id: str, lease: Lease, now: float) -> bool:
        error = self._write(
            self._client.update_item,
            Key=_typed({"id": record_id}),
            UpdateExpression="SET in_progress_expiration = :until, #owner = :owner",
            ConditionExpression="webhook > :none AND in_progress_expiration < :now_ms",
            ExpressionAttributeNames={"#owner": "owner"},
            ExpressionAttributeValues=_typed(
                {
                    ":owner": lease.owner,
                    ":until": in_ms(lease.until),
                    ":now_ms": in_ms(now),
                    ":none": "",
                }
            ),
        )
        return error is None

    def end_delivery(self, record_id: str, owner: str) -> bool:
        error = self._write(
            self._client.update_item,
            Key=_typed({"id": record_id}),
            UpdateExpression="SET webhook = :none",
            ConditionExpression=_IS_OWN,
            ExpressionAttributeNames={"#owner": "owner"},
            ExpressionAttributeValues=_typed({":owner": owner, ":none": ""}),
        )
        return error is None

    def release(self, record_id: str, owner: str) -> bool:
        error = self._write(
            self._client.update_item,
            Key=_typed({"id": record_id}),
            UpdateExpression="SET in_progress_expiration = :ended, #owner = :none",
            ConditionExpression=f"{_IS_OWN} AND #status = :running",
            ExpressionAttributeNames={"#owner": "owner", "#status": "status"},
            ExpressionAttributeValues=_typed(
                {":owner": owner, ":running": Status.RUNNING.value, ":ended": 0, ":none": ""}
            ),
        )
        return error is None

    def delete(self, record_id: str, owner: str) -> bool:
        error = self._write(
            self._client.delete_item,
            Key=_typed({"id": record_id}),
            ConditionExpression=_IS_OWN,
            ExpressionAttributeNames={"#owner": "owner"},
            ExpressionAttributeValues=_typed({":owner": owner}),
        )
        return error is None

    def close(self) -> None:
        self._client.close()

    def _write(self, operation: Callable[..., Any], **parameters: Any) -> Any:
        """Call the operation; return boto3's error if its condition was not met, else None."""
        try:
            operation(TableName=self.identity, **parameters)
        except self._client.exceptions.ConditionalCheckFailedException as error:
            return error
        return None


def _record_in(error: Any) -> JobRecord:
    """The record that made a condition fail."""
    item = error.response.get("Item")
    if item is None:
        raise UnreadableRecord("DynamoDB did not return the existing record of the job")
    return _read(item)


def _read(item: dict[str, Any]) -> JobRecord:
    read = TypeDeserializer().deserialize
    return from_item({name: read(value) for name, value in item.items()})


def _typed(values: dict[str, str | int]) -> dict[str, Any]:
    """The values as DynamoDB's API takes them: `{"S": …}`, `{"N": …}`."""
    write = TypeSerializer().serialize
    return {name: write(value) for name, value in values.items()}
