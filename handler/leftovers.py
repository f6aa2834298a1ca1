"""Removes what a killed attempt at the same job has left in the bucket.

Whoever is killed after the upload and before the response was stored leaves the job to another
attempt, and ComfyUI numbers its files anew: the job's folder would hold two of each. An object says
in its metadata which request it belongs to, so files of other requests with the same id stay.
"""

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any

from handler.log import emit

METADATA = "lambda-comfyui-request"


def remove_leftovers(
    s3: Any, bucket: str, keys: Collection[str], request_hash: str, max_age_s: float
) -> None:
    """Delete the objects of this request beside `keys` that are not older than `max_age_s`.

    Older ones were made before the response of an earlier run was forgotten: they are results.
    Needs s3:ListBucket and s3:DeleteObject; raises what boto3 raises.
    """
    after = datetime.now(UTC) - timedelta(seconds=max_age_s)
    for folder in {key.partition("/")[0] for key in keys}:
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{folder}/")
        for found in (item for page in pages for item in page.get("Contents", ())):
            if found["Key"] in keys or found["LastModified"] < after:
                continue
            place = {"Bucket": bucket, "Key": found["Key"]}
            # They travel as headers, whose case some stores change.
            metadata = s3.head_object(**place)["Metadata"].items()
            if (METADATA, request_hash) in {(name.lower(), value) for name, value in metadata}:
                s3.delete_object(**place)
                emit("artifact.removed", "removed what an earlier attempt left", file=found["Key"])
