"""AWS for the tests: moto's server, and clients of it and of the local S3 server."""

import atexit
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any
from uuid import uuid4

import boto3
import pytest
import requests
from botocore.config import Config
from moto.server import ThreadedMotoServer

from runtime.local_s3 import LocalS3

REGION = "us-east-1"


@contextmanager
def moto_server(patch: pytest.MonkeyPatch, variable: str = "AWS_ENDPOINT_URL") -> Iterator[str]:
    """Its address; every client of this process and its children finds it by the variable.

    `patch` is the test's own: two of them would restore each other's variables.
    """
    with bare_moto_server() as url:
        use_moto_server(patch, url, variable)
        yield url


@contextmanager
def bare_moto_server() -> Iterator[str]:
    """The address of a server without any state, which no client finds by itself.

    All servers of a process would share their state, so there is one, which stays: its end alone
    takes half a second.
    """
    url = _moto_server()
    requests.post(f"{url}/moto-api/reset", timeout=10).raise_for_status()
    yield url


@cache
def _moto_server() -> str:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    atexit.register(server.stop)
    host, port = server.get_host_and_port()
    return f"http://{host}:{port}"


def use_moto_server(patch: pytest.MonkeyPatch, url: str, variable: str) -> None:
    """Let every client of this process and its children find the server by the variable."""
    patch.setenv(variable, url)
    patch.setenv("AWS_DEFAULT_REGION", REGION)
    patch.setenv("AWS_ACCESS_KEY_ID", "testing")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")


@contextmanager
def moto_client(patch: pytest.MonkeyPatch, service: str) -> Iterator[Any]:
    """A client of this service, alone on a server of its own."""
    with moto_server(patch, f"AWS_ENDPOINT_URL_{service.upper()}"):
        client = boto3.session.Session().client(service)
        yield client
        client.close()


def bucket_client(s3: LocalS3) -> Any:
    """A client of a local S3 server."""
    return boto3.client(
        "s3",
        endpoint_url=s3.endpoint_url,
        aws_access_key_id=s3.access_key_id,
        aws_secret_access_key=s3.secret_access_key,
        region_name=REGION,
    )


def new_bucket(server: LocalS3) -> LocalS3:
    """The same server with another bucket, which is empty."""
    name = f"bucket-{uuid4()}"
    client = bucket_client(server)
    client.create_bucket(Bucket=name)
    client.close()
    return replace(server, bucket_name=name)


def objects_in(s3: LocalS3, prefix: str = "") -> set[str]:
    """The keys in the bucket of a local S3 server."""
    client = bucket_client(s3)
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=s3.bucket_name, Prefix=prefix)
    keys = {item["Key"] for page in pages for item in page.get("Contents", ())}
    client.close()
    return keys


def lambda_client(port: int) -> Any:
    """A client of a Lambda endpoint on this port of the loopback; it tries each call once."""
    return boto3.client(
        "lambda",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name="us-east-1",
        aws_access_key_id="x",
        aws_secret_access_key="x",
        config=Config(retries={"total_max_attempts": 1}),
    )
