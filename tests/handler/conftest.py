"""The job stores: a file of SQLite, and DynamoDB on moto's server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.aws import REGION, bare_moto_server, use_moto_server
from tests.handler.job_tables import DynamoDBTable, JobTable, SqliteTable


@pytest.fixture
def sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SqliteTable:
    """JOBS_DB names a file that does not exist yet, in a folder that does not exist yet."""
    path = tmp_path / "own" / "jobs.sqlite"
    monkeypatch.setenv("JOBS_DB", str(path))
    return SqliteTable(path)


@pytest.fixture(scope="module")
def dynamodb_client() -> Iterator[Any]:
    """A client of a server that the tests of a module share: a new one for each would take long."""
    with bare_moto_server() as url:
        client = boto3.client(
            "dynamodb",
            endpoint_url=url,
            region_name=REGION,
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )
        yield client
        client.close()


@pytest.fixture
def dynamodb(dynamodb_client: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[DynamoDBTable]:
    """JOBS_TABLE names an empty table."""
    url = dynamodb_client.meta.endpoint_url
    use_moto_server(monkeypatch, url, "AWS_ENDPOINT_URL_DYNAMODB")
    monkeypatch.setenv("JOBS_TABLE", DynamoDBTable.NAME)
    table = DynamoDBTable(dynamodb_client)
    table.create()
    yield table
    table.drop()


@pytest.fixture(params=["sqlite", pytest.param("dynamodb", marks=pytest.mark.slow)])
def table(request: pytest.FixtureRequest) -> JobTable:
    """Either of the two, for tests that hold for both."""
    table: JobTable = request.getfixturevalue(request.param)
    return table
