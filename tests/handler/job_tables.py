"""The tables of the job stores as an operator sees them: plain items, whatever is in them."""

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from boto3.dynamodb.types import TypeDeserializer, TypeSerializer

from handler.settings import Settings
from tests.infra.template import properties

Item = Mapping[str, Any]


class JobTable(Protocol):
    """All items of a store, read and written beside it."""

    @property
    def settings(self) -> Settings: ...

    def items(self) -> list[dict[str, Any]]: ...

    def put(self, item: Item) -> None: ...

    def create(self) -> None: ...

    def drop(self) -> None: ...


class SqliteTable:
    """The table in the file of a SQLite store."""

    def __init__(self, path: Path) -> None:
        self.settings = Settings(jobs_db=path)
        self.path = path

    def items(self) -> list[dict[str, Any]]:
        with closing(sqlite3.connect(self.path)) as db:
            db.row_factory = sqlite3.Row
            return [dict(row) for row in db.execute("SELECT * FROM job_records")]

    def put(self, item: Item) -> None:
        names = ", ".join(item)
        marks = ", ".join(f":{name}" for name in item)
        with closing(sqlite3.connect(self.path)) as db, db:
            db.execute(f"INSERT OR REPLACE INTO job_records ({names}) VALUES ({marks})", item)

    def create(self) -> None:
        """Undo `drop`. The store itself creates its table in a new file."""
        self._execute("ALTER TABLE away RENAME TO job_records")

    def drop(self) -> None:
        self._execute("ALTER TABLE job_records RENAME TO away")
        self._execute("DELETE FROM away")

    def _execute(self, statement: str) -> None:
        with closing(sqlite3.connect(self.path)) as db, db:
            db.execute(statement)


class DynamoDBTable:
    """The table of template.yaml, on moto's server."""

    NAME = "jobs"

    def __init__(self, client: Any) -> None:
        self.settings = Settings(jobs_table=self.NAME)
        self._client = client

    def create(self, *, with_index: bool = True) -> None:
        table = dict(properties("JobsTable"))
        names = ["BillingMode", "AttributeDefinitions", "KeySchema"]
        if with_index:
            names.append("GlobalSecondaryIndexes")
        else:
            table["AttributeDefinitions"] = table["AttributeDefinitions"][:1]
        self._client.create_table(TableName=self.NAME, **{name: table[name] for name in names})

    def items(self) -> list[dict[str, Any]]:
        read = TypeDeserializer().deserialize
        found = self._client.scan(TableName=self.NAME)["Items"]
        return [{name: read(value) for name, value in item.items()} for item in found]

    def put(self, item: Item) -> None:
        write = TypeSerializer().serialize
        typed = {name: write(value) for name, value in item.items()}
        self._client.put_item(TableName=self.NAME, Item=typed)

    def drop(self) -> None:
        self._client.delete_table(TableName=self.NAME)


def lease_until(table: JobTable) -> float:
    """When the lease of the only record ends, in seconds of Unix time."""
    (item,) = table.items()
    return int(item["in_progress_expiration"]) / 1000
