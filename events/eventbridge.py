"""An event of EventBridge: its detail is one request, maybe with the token of a task of Step
Functions, or it tells of a new S3 object that holds one.

https://docs.aws.amazon.com/eventbridge/latest/ref/overiew-event-structure.html and
https://docs.aws.amazon.com/AmazonS3/latest/userguide/ev-events.html. The invocation is
asynchronous.
"""

import logging
from collections.abc import Iterable
from typing import Any

from events import asynchronous, stepfunctions
from events.default_request_id import identified
from events.s3_objects import S3Object, requests_in

# A child of the handler's logger: its lines have the same form.
_log = logging.getLogger("lambda-comfyui.eventbridge")


def matches(event: Any) -> bool:
    return (
        isinstance(event, dict)
        and all(isinstance(event.get(name), str) for name in ("id", "detail-type", "source"))
        and isinstance(event.get("detail"), dict)
    )


def process(event: dict[str, Any], handle: asynchronous.Handle) -> dict[str, Any]:
    """Run the request in the detail, or the one in the object that it tells of. Raises TryAgain."""
    if stepfunctions.matches(event["detail"]):
        stepfunctions.process_delivery(event["detail"], event["id"], handle)
        return {"responses": []}
    return asynchronous.run(_requests(event), handle)


def _requests(event: dict[str, Any]) -> Iterable[Any]:
    """The request in the detail or in the object; TryAgain is raised if that cannot be read."""
    from aws_lambda_powertools.utilities.data_classes import EventBridgeEvent  # noqa: PLC0415

    told = EventBridgeEvent(event)
    if told.source != "aws.s3":
        return [identified(told.detail, told.get_id)]
    created = _created(told.detail) if told.detail_type == "Object Created" else None
    if created is None:
        _log.info("no new object: ignored", extra={"detail_type": told.detail_type})
        return []
    return requests_in([created])


def _created(detail: dict[str, Any]) -> S3Object | None:
    match detail:
        case {"bucket": {"name": str(bucket)}, "object": {"key": str(key), **rest}}:
            # Unlike in S3's own notifications the key is not URL-encoded here; Powertools' data
            # class decodes it all the same, and makes another key of one with a plus sign in it.
            return S3Object(
                bucket=bucket,
                key=key,
                version=str(rest.get("version-id") or ""),
                etag=str(rest.get("etag") or ""),
            )
    return None
