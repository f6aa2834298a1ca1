"""Removes what an earlier attempt at the same job has left in the bucket.

Whoever is killed after the upload and before the response was stored leaves the job to another
attempt, and ComfyUI numbers its files anew: the job's folder would hold two of each. An object says
in its metadata which request it belongs to, so files of other requests with the same id stay.
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
    """One try at a claimed request: what tells the request from others, and when the try began."""

    request: str
    began: datetime


def remove_leftovers(
    s3: Any, bucket: str, keys: Collection[str], attempt: Attempt, max_age_s: float
) -> None:
    """Delete what earlier attempts have put beside `keys`, as far as it is not too old.

    What is older than `max_age_s` was made before the response of an earlier run was forgotten, and
    is a result. What is younger than this attempt is of one that has taken the job from us. Needs
    s3:ListBucket and s3:DeleteObject; raises what boto3 raises.
    """
    since = attempt.began - timedelta(seconds=max_age_s)
    for folder in {key.partition("/")[0] for key in keys}:
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{folder}/")
        for found in (item for page in pages for item in page.get("Contents", ())):
            if found["Key"] in keys or not since < found["LastModified"] < attempt.began:
                continue
            place = {"Bucket": bucket, "Key": found["Key"]}
            # They travel as headers, whose case some stores change.
            metadata = s3.head_object(**place)["Metadata"].items()
            if (METADATA, attempt.request) in {(name.lower(), value) for name, value in metadata}:
                s3.delete_object(**place)
                emit(ArtifactRemoved(file=found["Key"]))
