"""The state of a fleet in a DynamoDB table, for several routers at once.

The table is that of jobs, or one with the same key `id` and the same index: see template.yaml. Its
user needs GetItem, PutItem and DeleteItem, and Query on the index.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import boto3
from botocore.config import Config

from runtime.fleet.registry import Worker
from runtime.fleet.store import from_json, to_json

_CONFIG = Config(
    connect_timeout=2, read_timeout=3, retries={"mode": "standard", "total_max_attempts": 3}
)
# Of the table: handler/jobs/dynamodb.py lists jobs by the same index.
_INDEX, _LISTED, _WORKERS, _ROUTERS = "by_created", "listed", "fleet-worker", "fleet-router"
_FORGET_ROUTERS_S = 3600


class DynamoDBFleetStore:
    """The workers in the table of this name."""

    def __init__(self, table: str) -> None:
        self._table = table
        self._client = boto3.session.Session().client("dynamodb", config=_CONFIG)

    def workers(self) -> Sequence[Worker]:
        return [from_json(item["worker"]["S"]) for item in self._listed(_WORKERS)]

    def is_changed_elsewhere(self) -> bool:
        # Only a look at all workers could tell.
        return True

    def get(self, worker_id: int) -> Worker | None:
        answer = self._client.get_item(
            TableName=self._table, Key={"id": {"S": _key(worker_id)}}, ConsistentRead=True
        )
        return from_json(answer["Item"]["worker"]["S"]) if "Item" in answer else None

    def put(self, worker: Worker, version: int) -> bool:
        item = {
            "id": {"S": _key(worker.id)},
            "version": {"N": str(worker.version)},
            "worker": {"S": to_json(worker)},
            _LISTED: {"S": _WORKERS},
            "created": {"N": str(int(worker.joined_at * 1000))},
        }
        condition, values = "attribute_not_exists(id)", {}
        if version:
            condition, values = "version = :before", {":before": {"N": str(version)}}
        try:
            self._client.put_item(
                TableName=self._table,
                Item=item,
                ConditionExpression=condition,
                **({"ExpressionAttributeValues": values} if values else {}),
            )
        except self._client.exceptions.ConditionalCheckFailedException:
            # boto3 may have repeated a call whose answer was lost.
            return self.get(worker.id) == worker
        return True

    def remove(self, worker: Worker) -> bool:
        try:
            self._client.delete_item(
                TableName=self._table,
                Key={"id": {"S": _key(worker.id)}},
                ConditionExpression="version = :before",
                ExpressionAttributeValues={":before": {"N": str(worker.version)}},
            )
        except self._client.exceptions.ConditionalCheckFailedException:
            return False
        return True

    def secret(self, name: str, make: Callable[[], str]) -> str:
        key = {"id": {"S": f"fleet-secret#{name}"}}
        answer = self._client.get_item(TableName=self._table, Key=key, ConsistentRead=True)
        if "Item" in answer:
            return str(answer["Item"]["secret"]["S"])
        value = make()
        try:
            self._client.put_item(
                TableName=self._table,
                Item={**key, "secret": {"S": value}},
                ConditionExpression="attribute_not_exists(id)",
            )
        except self._client.exceptions.ConditionalCheckFailedException:
            return self.secret(name, make)
        return value

    def publish(self, router: str, text: str, now: float) -> None:
        item = {
            "id": {"S": f"{_ROUTERS}#{router}"},
            "worker": {"S": text},
            _LISTED: {"S": _ROUTERS},
            "created": {"N": str(int(now * 1000))},
            # Each start of a router is another one.
            "expiration": {"N": str(int(now) + _FORGET_ROUTERS_S)},
        }
        self._client.put_item(TableName=self._table, Item=item)

    def published(self, since: float) -> Mapping[str, str]:
        items = self._listed(_ROUTERS, since)
        return {item["id"]["S"].partition("#")[2]: item["worker"]["S"] for item in items}

    def _listed(self, kind: str, since: float = 0.0) -> Iterator[Mapping[str, Any]]:
        """The items of this kind that were created since then, as the index has them.

        It has the attribute `worker`, and may be a moment behind the table.
        """
        pages = self._client.get_paginator("query").paginate(
            TableName=self._table,
            IndexName=_INDEX,
            KeyConditionExpression=f"{_LISTED} = :kind AND created >= :since",
            ExpressionAttributeValues={
                ":kind": {"S": kind},
                ":since": {"N": str(int(since * 1000))},
            },
        )
        return (item for page in pages for item in page["Items"])

    def close(self) -> None:
        self._client.close()


def _key(worker_id: int) -> str:
    return f"{_WORKERS}#{worker_id}"
