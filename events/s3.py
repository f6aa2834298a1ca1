"""A notification of S3: each new object whose key ends with `.json` is one job.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html. The
invocation is asynchronous: https://docs.aws.amazon.com/lambda/latest/dg/with-s3.html. How an object
is read is decided in events/s3_objects.py.
"""

from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote_plus

from events import asynchronous
from events.event_context import EventContext, Response
from events.s3_objects import S3Object, requests_in
from events.source_log import log_of

_log = log_of("s3")


def matches(event: Any) -> bool:
    if _is_test_event(event):
        return True
    records = event.get("Records") if isinstance(event, dict) else None
    return isinstance(records, list) and bool(records) and all(_is_record(r) for r in records)


def process(event: dict[str, Any], context: EventContext) -> Response:
    """Run the job in every new object. Raises TryAgain."""
    return asynchronous.run(_requests_in(event), context)


def _requests_in(event: dict[str, Any]) -> Iterable[Any]:
    """The request in every new object. Raises TryAgain after the last one; see s3_objects."""
    from aws_lambda_powertools.utilities.data_classes import S3Event  # noqa: PLC0415

    if _is_test_event(event):
        _log.info("S3's test event: ignored")
        return []
    created = []
    for record in S3Event(event).records:
        if not record.event_name.startswith("ObjectCreated:"):
            _log.info("no new object: ignored", extra={"event_name": record.event_name})
            continue
        created.append(
            S3Object(
                bucket=record.s3.bucket.name,
                # Powertools does not decode the key of a record.
                key=unquote_plus(record.s3.get_object.key),
                version=record.s3.get_object.version_id or "",
                etag=record.s3.get_object.etag,
            )
        )
    return requests_in(created)


def _is_test_event(event: Any) -> bool:
    """What S3 sends when a notification is configured; the page above shows it."""
    return (
        isinstance(event, dict)
        and event.get("Service") == "Amazon S3"
        and event.get("Event") == "s3:TestEvent"
    )


def _is_record(record: Any) -> bool:
    if not isinstance(record, dict) or record.get("eventSource") != "aws:s3":
        return False
    s3 = record.get("s3")
    return (
        isinstance(record.get("eventName"), str)
        and isinstance(s3, dict)
        and isinstance(s3.get("bucket"), dict)
        and isinstance(s3["bucket"].get("name"), str)
        and isinstance(s3.get("object"), dict)
        and isinstance(s3["object"].get("key"), str)
    )
