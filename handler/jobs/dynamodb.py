"""Job records in a DynamoDB table: one item a record, every change a conditional write.

The table, which template.yaml creates, has the string key `id`, the time to live `expiration`, and
the index `by_created` for lists. Its user needs GetItem and PutItem, and Query on the index. What
an item holds is decided in `record`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import boto3
from boto3.dynamodb.types import TypeDeserializer, TypeSerializer
from botocore.config import Config
from botocore.exceptions import ClientError

from handler.jobs.listing import Cursor, page_of
from handler.jobs.moves import Move
from handler.jobs.record import JobRecord, Status, UnreadableRecord, from_item, in_ms, to_item
from handler.jobs.store import Changed, JobPage, JobQuery, StoreError

# A table that does not answer delays a job by seconds; boto3's own limits are minutes.
_CONFIG = Config(
    connect_timeout=2, read_timeout=3, retries={"mode": "standard", "total_max_attempts": 2}
)
INDEX = "by_created"
# The index has one partition, so that its order is that of all records. Only records have the
# attribute: those of earlier versions are not listed.
_LISTED, _LISTED_VALUE = "listed", "job"
_MAX_COUNTED = 1000
_MAX_TRIES = 20
_NO_INDEX = (
    f"the table of jobs has no index {INDEX}, which a list of jobs needs; deploy the current"
    " template.yaml"
)


Items = list[dict[str, Any]]


class DynamoDBStore:
    """The table with the name `identity`."""

    # An item may have 400 KB, and its other attributes need a little of it:
    # https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Constraints.html
    max_response_bytes: int | None = 380_000
    # Each look-up is a call that costs money.
    cancel_poll_s = 1.0

    has_one_clock = False

    def __init__(self, table: str) -> None:
        self.identity = table
        self._client = boto3.session.Session().client("dynamodb", config=_CONFIG)

    def change(
        self, record_id: str, move: Move, now: float, known: JobRecord | None = None
    ) -> Changed:
        before = known
        for _ in range(_MAX_TRIES):
            after = move(before)
            if after is None:
                if before is known:
                    # It may have changed since.
                    current = self._get(record_id, now)
                    if current != before:
                        before = current
                        continue
                return Changed(before, before, is_made=False)
            after = replace(after, version=(before.version if before else 0) + 1)
            conflict = self._put(after, before, now)
            if conflict is None:
                return Changed(before, after, is_made=True)
            existing = _retained(conflict, now)
            if existing and to_item(existing) == to_item(after):
                # boto3 has repeated the call, because its answer was lost.
                return Changed(before, after, is_made=True)
            before = existing
        raise StoreError(f"the record of the job was changed {_MAX_TRIES} times meanwhile")

    def get(self, record_id: str, now: float) -> JobRecord | None:
        record = self._get(record_id, now)
        return record if record and record.is_known(now) else None

    def is_cancel_requested(self, record_id: str) -> bool:
        answer = self._client.get_item(
            TableName=self.identity,
            Key=_typed({"id": record_id}),
            ConsistentRead=True,
            ProjectionExpression="cancel_requested",
        )
        return bool(_plain(answer.get("Item", {})).get("cancel_requested"))

    def list(self, query: JobQuery, now: float) -> JobPage:
        filters = ["retained_until > :now"]
        values: dict[str, str | int] = {":job": _LISTED_VALUE, ":now": int(now)}
        condition = f"{_LISTED} = :job"
        names = {}
        if query.created_before is not None:
            condition += " AND created < :before"
            values[":before"] = in_ms(query.created_before)
        if query.source:
            filters.append("#source = :source")
            names["#source"], values[":source"] = "source", query.source
        if query.statuses:
            marks = {f":status{n}": s.value for n, s in enumerate(sorted(query.statuses))}
            filters.append(f"#status IN ({', '.join(marks)})")
            names["#status"] = "status"
            values |= marks
        items = self._query(
            query.limit + 1,
            cursor=query.cursor,
            KeyConditionExpression=condition,
            FilterExpression=" AND ".join(filters),
            ExpressionAttributeValues=_typed(values),
            **({"ExpressionAttributeNames": names} if names else {}),
        )
        return page_of(items, query.limit)

    def counts(self, now: float) -> Mapping[Status, int]:
        counts: dict[Status, int] = {}
        for record in self.list(JobQuery(limit=_MAX_COUNTED), now).records:
            counts[record.status] = counts.get(record.status, 0) + 1
        return counts

    def close(self) -> None:
        self._client.close()

    def _get(self, record_id: str, now: float) -> JobRecord | None:
        answer = self._client.get_item(
            TableName=self.identity, Key=_typed({"id": record_id}), ConsistentRead=True
        )
        return _retained(answer["Item"], now) if "Item" in answer else None

    def _put(self, after: JobRecord, before: JobRecord | None, now: float) -> dict[str, Any] | None:
        """Store the record instead of `before`. Return None, or the item that is there instead."""
        # DynamoDB removes an expired item some time later, within a few days.
        condition = "attribute_not_exists(id) OR expiration <= :now"
        values: dict[str, str | int] = {":now": int(now)}
        if before is not None and before.version:
            condition, values = "version = :version", {":version": before.version}
        elif before is not None:
            # Earlier versions wrote none.
            condition = "attribute_exists(id) AND attribute_not_exists(version)"
            values = {}
        try:
            self._client.put_item(
                TableName=self.identity,
                Item=_typed({**to_item(after), _LISTED: _LISTED_VALUE}),
                ConditionExpression=condition,
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
                **({"ExpressionAttributeValues": _typed(values)} if values else {}),
            )
        except self._client.exceptions.ConditionalCheckFailedException as error:
            return dict(error.response.get("Item") or {})
        return None

    def _query(self, limit: int, *, cursor: str, **parameters: Any) -> Items:
        """The first `limit` items of the index that meet the filter, the newest first."""
        items: Items = []
        start = Cursor.decode(cursor) if cursor else None
        key = start and _typed(
            {"id": start.record_id, "created": start.created_ms, _LISTED: _LISTED_VALUE}
        )
        while len(items) < limit:
            try:
                answer = self._client.query(
                    TableName=self.identity,
                    IndexName=INDEX,
                    ScanIndexForward=False,
                    **({"ExclusiveStartKey": key} if key else {}),
                    **parameters,
                )
            except ClientError as error:
                if "index" in error.response["Error"].get("Message", ""):
                    raise StoreError(_NO_INDEX) from error
                raise
            items += [_plain(item) for item in answer["Items"]]
            if not (key := answer.get("LastEvaluatedKey")):
                break
        return items[:limit]


def _retained(item: dict[str, Any], now: float) -> JobRecord | None:
    """The record of an item. None if there is no item, or a damaged one that has expired."""
    if not item:
        return None
    values = _plain(item)
    try:
        return from_item(values)
    except UnreadableRecord:
        if int(values.get("expiration", now + 1)) <= now:
            return None
        raise


def _plain(item: Mapping[str, Any]) -> dict[str, Any]:
    read = TypeDeserializer().deserialize
    return {name: read(value) for name, value in item.items()}


def _typed(values: Mapping[str, str | int]) -> dict[str, Any]:
    """The values as DynamoDB's API takes them: `{"S": …}`, `{"N": …}`."""
    write = TypeSerializer().serialize
    return {name: write(value) for name, value in values.items()}
