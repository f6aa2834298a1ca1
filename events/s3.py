"""A notification of S3: each new object whose key ends with `.json` is one job.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html; the
invocation is asynchronous: https://docs.aws.amazon.com/lambda/latest/dg/with-s3.html
"""

import logging
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote_plus

from events import asynchronous
from events.s3_objects import S3Object, requests_in

# A child of the handler's logger: its lines have the same form.
_log = logging.getLogger("lambda-comfyui.s3")


def matches(event: Any) -> bool:
    if _is_test(event):
        return True
    records = event.get("Records") if isinstance(event, dict) else None
    return isinstance(records, list) and bool(records) and all(_is_ours(r) for r in records)


def process(event: dict[str, Any], handle: asynchronous.Handle) -> dict[str, Any]:
    """Run the job in every new object. Raises TryAgain."""
    return asynchronous.run(_requests(event), handle)


def _requests(event: dict[str, Any]) -> Iterable[Any]:
    """The request in every new object; TryAgain is raised after them if one cannot be read."""
    from aws_lambda_powertools.utilities.data_classes import S3Event  # noqa: PLC0415

    if _is_test(event):
        _log.info("S3 tries its new notification: ignored")
        return []
    created = []
    for record in S3Event(event).records:
        if not record.event_name.startswith("ObjectCreated:"):
            _log.info("no new object: ignored", extra={"event_name": record.event_name})
            continue
        created.append(
            S3Object(
                bucket=record.s3.bucket.name,
                # Powertools leaves the key of a record as S3 encoded it.
                key=unquote_plus(record.s3.get_object.key),
                version=record.s3.get_object.version_id or "",
                etag=record.s3.get_object.etag,
            )
        )
    return requests_in(created)


def _is_test(event: Any) -> bool:
    """What S3 sends when somebody configures a notification; the first page shows it, too."""
    return (
        isinstance(event, dict)
        and event.get("Service") == "Amazon S3"
        and event.get("Event") == "s3:TestEvent"
    )


def _is_ours(record: Any) -> bool:
    if not isinstance(record, dict) or record.get("eventSource") != "aws:s3":
        return False
    told = record.get("s3")
    return (
        isinstance(record.get("eventName"), str)
        and isinstance(told, dict)
        and isinstance(told.get("bucket"), dict)
        and isinstance(told["bucket"].get("name"), str)
        and isinstance(told.get("object"), dict)
        and isinstance(told["object"].get("key"), str)
    )
