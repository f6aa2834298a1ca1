"""AWS services of moto that the containers reach, and clients for the checks."""

import time
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

REGION = "us-east-1"
BUCKET = "results"
START_S = 60


@dataclass(frozen=True)
class Aws:
    """One endpoint for all services, with any credentials."""

    url: str

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://").partition(":")[0]

    def client(self, service: str) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id="x",
            aws_secret_access_key="x",
        )

    def wait_until_it_answers(self) -> None:
        """Make the bucket. Raises the last error after START_S."""
        until = time.monotonic() + START_S
        while True:
            try:
                self.client("s3").create_bucket(Bucket=BUCKET)
                return
            except (BotoCoreError, ClientError):
                if time.monotonic() > until:
                    raise
            time.sleep(0.2)

    @property
    def s3_of_a_request(self) -> dict[str, str]:
        """The request's field `s3`."""
        return {
            "endpoint_url": self.url,
            "bucket_name": BUCKET,
            "region": REGION,
            "access_key_id": "x",
            "secret_access_key": "x",
        }

    def check_stored(self, key: str) -> None:
        size = self.client("s3").head_object(Bucket=BUCKET, Key=key)["ContentLength"]
        print(f"s3://{BUCKET}/{key}: {size} bytes")
        assert size > 0
