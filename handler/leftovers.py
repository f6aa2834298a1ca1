"""Removes the files that an earlier attempt at the same job has left in the bucket.

A handler that is killed after the upload and before the response was stored leaves the job to
another attempt, and ComfyUI gives its files new numbers: the job's folder would hold two of each.
The metadata of an object names its request, so files of other requests with the same id stay.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from handler.emit import emit
from handler.job_events import ArtifactRemoved

METADATA = "lambda-comfyui-request"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at a claimed request: `request` identifies the request, also across attempts."""

    request: str
    began: datetime


def remove_leftovers(
    s3: Any, bucket: str, keys: Collection[str], attempt: Attempt, max_age_s: float
) -> None:
    """Delete the files of earlier attempts in the folders of `keys`, all but `keys` themselves.

    A file that is older than `max_age_s` stays: it is the result of an earlier run whose stored
    response has expired. A file that is younger than this attempt stays as well: it is of another
    attempt, which has taken the job over. Needs s3:ListBucket and s3:DeleteObject. Raises what
    boto3 raises.
    """
    since = attempt.began - timedelta(seconds=max_age_s)
    for folder in {key.partition("/")[0] for key in keys}:
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{folder}/")
        for item in (item for page in pages for item in page.get("Contents", ())):
            key, modified = item["Key"], item["LastModified"]
            if key in keys or not since < modified < attempt.began:
                continue
            # Metadata are HTTP headers, and some stores change the case of their names.
            metadata = s3.head_object(Bucket=bucket, Key=key)["Metadata"].items()
            if (METADATA, attempt.request) in {(name.lower(), value) for name, value in metadata}:
                s3.delete_object(Bucket=bucket, Key=key)
                emit(ArtifactRemoved(file=key))
