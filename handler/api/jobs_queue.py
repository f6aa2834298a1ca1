"""Sends accepted jobs to the SQS queue that the GPU function reads.

A message may have 1 MiB. A larger request becomes an object of the results bucket, and its message
is S3's notification about it, which the function reads like one of S3's own (events/s3.py).
https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
"""

import json
import uuid
from typing import Any
from urllib.parse import quote_plus

from events import aws
from handler.api.dispatcher import Accepted, Unavailable
from handler.jobs.fingerprint import fingerprint
from handler.settings import Settings

MAX_MESSAGE_BYTES = 1024 * 1024 - 1024
# template.yaml lets these objects expire.
REQUESTS_PREFIX = "requests/"


class JobsQueue:
    """The queue of JOBS_QUEUE_URL. Its connections are kept."""

    def __init__(self, settings: Settings) -> None:
        self._url, self._bucket = settings.jobs_queue_url, settings.s3_bucket_name
        self._region = settings.s3_region or None
        self._sqs = aws.client("sqs")
        self._s3: Any = None

    def send(self, accepted: Accepted) -> None:
        """Raises Unavailable; the job may then be sent again."""
        try:
            body = accepted.body.decode()
            if len(accepted.body) > MAX_MESSAGE_BYTES:
                body = json.dumps(self._stored(accepted))
            parameters: dict[str, Any] = {"QueueUrl": self._url, "MessageBody": body}
            if self._url.endswith(".fifo"):
                # The record keeps a job from running twice; a job that is sent again must come.
                parameters["MessageGroupId"] = fingerprint(accepted.job.id)
                parameters["MessageDeduplicationId"] = uuid.uuid4().hex
            self._sqs.send_message(**parameters)
        except Exception as error:
            raise Unavailable(
                f"the queue of jobs did not take the job: {aws.error_name(error)}"
            ) from error

    def _stored(self, accepted: Accepted) -> dict[str, Any]:
        """Store the request; S3's notification about it."""
        if self._s3 is None:
            self._s3 = aws.client("s3", self._region)
        key = f"{REQUESTS_PREFIX}{fingerprint(accepted.job.id)}.json"
        self._s3.put_object(
            Bucket=self._bucket, Key=key, Body=accepted.body, ContentType="application/json"
        )
        # https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html
        bucket = {"name": self._bucket, "arn": f"arn:aws:s3:::{self._bucket}"}
        stored = {"key": quote_plus(key, safe="/"), "size": len(accepted.body)}
        return {
            "Records": [
                {
                    "eventVersion": "2.1",
                    "eventSource": "aws:s3",
                    "eventName": "ObjectCreated:Put",
                    "s3": {"s3SchemaVersion": "1.0", "bucket": bucket, "object": stored},
                }
            ]
        }
