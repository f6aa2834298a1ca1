"""A job's files in the bucket never replace those of another request with the same id.

On moto's server, which knows conditional uploads as AWS does, and on rclone's, which ignores them.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from events.errors import IdConflict
from handler.conditional_upload import UploadClient
from handler.job_folder import METADATA, JobFolder, JobMark
from runtime.local_s3 import LocalS3
from tests import workflows
from tests.aws import REGION, bare_moto_server, bucket_client
from tests.conftest import run
from tests.handler.test_storage import s3_fields

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

BUCKET = "lambda-comfyui"
MULTIPART_BYTES = 9 * 2**20


@pytest.fixture(scope="module")
def moto_s3() -> Iterator[LocalS3]:
    with bare_moto_server() as url:
        server = LocalS3(url, "testing", "testing", BUCKET)
        client = bucket_client(server)
        client.create_bucket(Bucket=BUCKET)
        yield server
        client.close()


@pytest.fixture(params=["moto", "rclone"])
def server(request: pytest.FixtureRequest) -> LocalS3:
    server: LocalS3 = request.getfixturevalue({"moto": "moto_s3", "rclone": "s3"}[request.param])
    return server


@pytest.fixture
def bucket(server: LocalS3) -> Iterator[Any]:
    client = bucket_client(server)
    yield client
    client.close()


@pytest.fixture
def folder_name(request: pytest.FixtureRequest) -> str:
    """A folder of the bucket that no other test uses."""
    name: str = request.node.name
    return name.translate(str.maketrans("[]/", "---"))


def mark(folder: str, job: str) -> JobMark:
    return JobMark(folder, {METADATA: job})


def upload(s3: Any, path: Path, folder: str, job: str) -> None:
    JobFolder(UploadClient(s3), BUCKET, mark(folder, job)).upload(
        str(path), f"{folder}/a.bin", {"ContentType": "image/png"}, lambda _: None
    )


def content(s3: Any, folder: str) -> bytes:
    body: bytes = s3.get_object(Bucket=BUCKET, Key=f"{folder}/a.bin")["Body"].read()
    return body


def file_of(tmp_path: Path, name: str, size: int) -> Path:
    path = tmp_path / name
    path.write_bytes(name.encode() + os.urandom(size))
    return path


def test_folder_of_another_job_is_refused(bucket: Any, folder_name: str, tmp_path: Path) -> None:
    upload(bucket, file_of(tmp_path, "first", 9), folder_name, "one")

    with pytest.raises(IdConflict, match=f"a file of another request with this id: {folder_name}/"):
        JobFolder(UploadClient(bucket), BUCKET, mark(folder_name, "two"))


@pytest.mark.parametrize("size", [9, MULTIPART_BYTES], ids=["one part", "parts"])
def test_later_attempt_at_a_job_replaces_its_file(
    bucket: Any, folder_name: str, tmp_path: Path, size: int
) -> None:
    upload(bucket, file_of(tmp_path, "first", size), folder_name, "one")
    again = file_of(tmp_path, "again", size)

    upload(bucket, again, folder_name, "one")

    assert content(bucket, folder_name) == again.read_bytes()


def test_file_that_names_no_job_is_not_replaced(
    bucket: Any, folder_name: str, tmp_path: Path
) -> None:
    bucket.put_object(Bucket=BUCKET, Key=f"{folder_name}/a.bin", Body=b"foreign")

    with pytest.raises(IdConflict):
        upload(bucket, file_of(tmp_path, "first", 9), folder_name, "one")
    assert content(bucket, folder_name) == b"foreign"


def test_file_beside_one_that_names_no_job_is_stored(
    bucket: Any, folder_name: str, tmp_path: Path
) -> None:
    bucket.put_object(Bucket=BUCKET, Key=f"{folder_name}/other.bin", Body=b"foreign")
    path = file_of(tmp_path, "first", 9)

    upload(bucket, path, folder_name, "one")

    assert content(bucket, folder_name) == path.read_bytes()


@pytest.mark.parametrize("size", [9, MULTIPART_BYTES], ids=["one part", "parts"])
def test_of_two_jobs_that_begin_at_once_one_has_the_file(
    moto_s3: LocalS3, folder_name: str, tmp_path: Path, size: int
) -> None:
    s3 = bucket_client(moto_s3)
    client = UploadClient(s3)
    one, two = (JobFolder(client, BUCKET, mark(folder_name, job)) for job in ("one", "two"))
    key, path = f"{folder_name}/a.bin", file_of(tmp_path, "first", size)
    one.upload(str(path), key, {}, lambda _: None)

    with pytest.raises(IdConflict, match="a file of another request"):
        two.upload(str(file_of(tmp_path, "second", size)), key, {}, lambda _: None)
    assert content(s3, folder_name) == path.read_bytes()
    s3.close()


def test_bucket_that_may_not_be_listed_or_read_keeps_its_files(
    moto_s3: LocalS3, folder_name: str, tmp_path: Path
) -> None:
    s3 = bucket_client(moto_s3)
    upload(s3, file_of(tmp_path, "first", 9), folder_name, "one")

    def refuse(**_: Any) -> None:
        raise PermissionError

    for operation in ("ListObjectsV2", "HeadObject"):
        s3.meta.events.register(f"before-call.s3.{operation}", refuse)

    with pytest.raises(PermissionError):
        upload(s3, file_of(tmp_path, "second", 9), folder_name, "two")
    assert content(s3, folder_name).startswith(b"first")
    s3.close()


@pytest.mark.usefixtures("comfyui")
def test_request_with_a_known_id_is_refused_by_the_bucket_alone(server: LocalS3) -> None:
    fields = s3_fields(server)
    first = run(workflows.image(), request_id="by the bucket", s3=fields)
    (item,) = first["output"]
    before = requests.get(item["url"], timeout=10).content

    second = run(workflows.image(), request_id="by the bucket", s3=fields)

    assert second["status"] == "failed"
    assert second["error"]["type"] == "IdConflict"
    assert second["error"]["retryable"] is False
    assert all("url" not in item for item in second["output"])
    assert requests.get(item["url"], timeout=10).content == before


@pytest.mark.usefixtures("comfyui")
def test_same_request_runs_again_without_a_store(server: LocalS3) -> None:
    workflow = workflows.one("TestFixedName", text="same", name="again.png")

    responses = [
        run(workflow, request_id="again", s3=s3_fields(server, region=REGION)) for _ in range(2)
    ]

    assert [response["status"] for response in responses] == ["completed"] * 2
    assert "error" not in responses[1]
