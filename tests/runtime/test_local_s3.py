"""The local S3 server, with the client that the handler uses."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests
from botocore.config import Config
from botocore.exceptions import ClientError

from runtime import local_s3 as module
from runtime.local_s3 import LocalS3, LocalS3Error, local_s3

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s3")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[LocalS3]:
    with local_s3(folder) as running:
        yield running


def client_of(server: LocalS3, secret: str = "") -> Any:
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint_url,
        aws_access_key_id=server.access_key_id,
        aws_secret_access_key=secret or server.secret_access_key,
        region_name=module.REGION,
        config=Config(signature_version="s3v4"),
    )


def link_to(server: LocalS3, key: str, content: bytes) -> str:
    client = client_of(server)
    client.put_object(Bucket=server.bucket_name, Key=key, Body=content)
    place = {"Bucket": server.bucket_name, "Key": key}
    return str(client.generate_presigned_url("get_object", place, ExpiresIn=60))


def test_what_is_stored_comes_back_by_its_link(server: LocalS3, folder: Path) -> None:
    link = link_to(server, "job/a b.mp4", b"film")

    assert requests.get(link, timeout=30).content == b"film"
    assert (folder / server.bucket_name / "job" / "a b.mp4").read_bytes() == b"film"


def test_link_without_its_signature_is_refused(server: LocalS3) -> None:
    link = link_to(server, "secret.txt", b"x")

    answer = requests.get(link.partition("?")[0], timeout=30)

    assert answer.status_code in (400, 403)


def test_wrong_secret_is_refused(server: LocalS3) -> None:
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        client_of(server, secret="wrong").list_objects_v2(Bucket=server.bucket_name)


def test_secret_is_shown_nowhere(server: LocalS3) -> None:
    commands = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)

    assert server.secret_access_key not in commands.stdout
    assert server.secret_access_key not in repr(server)
    assert server.environ["S3_SECRET_ACCESS_KEY"] == server.secret_access_key


def test_nothing_runs_after_it_is_left(tmp_path: Path) -> None:
    with local_s3(tmp_path) as server:
        pass

    with pytest.raises(requests.ConnectionError):
        requests.get(server.endpoint_url, timeout=30)
    assert os.listdir(tmp_path) == [server.bucket_name]


def test_server_that_does_not_start_shows_its_last_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "rclone"
    program.write_text(f"#!{sys.executable}\nprint('no such remote')")
    program.chmod(0o755)
    monkeypatch.setattr(module, "_rclone", lambda: program)

    with pytest.raises(LocalS3Error, match="no such remote"), local_s3(tmp_path / "data"):
        pass
