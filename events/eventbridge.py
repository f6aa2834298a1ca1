"""An event of EventBridge: its detail is one request, or names a new S3 object that holds one.

The request may have the task token of Step Functions. The invocation is asynchronous.
https://docs.aws.amazon.com/eventbridge/latest/ref/overiew-event-structure.html and
https://docs.aws.amazon.com/AmazonS3/latest/userguide/ev-events.html.
"""

from collections.abc import Iterable
from typing import Any

from events import asynchronous, stepfunctions
from events.default_request_id import with_default_id
from events.event_context import EventContext, Response
from events.s3_objects import S3Object, requests_in
from events.source_log import log_of

_log = log_of("eventbridge")


def matches(event: Any) -> bool:
    return (
        isinstance(event, dict)
        and all(isinstance(event.get(name), str) for name in ("id", "detail-type", "source"))
        and isinstance(event.get("detail"), dict)
    )


def process(event: dict[str, Any], context: EventContext) -> Response:
    """Run the request in the detail, or the one in the object that it names. Raises TryAgain.

    Raises NotTold, too, if the detail is a Step Functions task.
    """
    if stepfunctions.matches(event["detail"]):
        stepfunctions.process_delivery(event["detail"], event["id"], context)
        return {"responses": []}
    return asynchronous.run(_requests_in(event), context)


def _requests_in(event: dict[str, Any]) -> Iterable[Any]:
    from aws_lambda_powertools.utilities.data_classes import EventBridgeEvent  # noqa: PLC0415

    fields = EventBridgeEvent(event)
    if fields.source != "aws.s3":
        return [with_default_id(fields.detail, fields.get_id)]
    created = _created_object(fields.detail) if fields.detail_type == "Object Created" else None
    if created is None:
        _log.info("no new object: ignored", extra={"detail_type": fields.detail_type})
        return []
    return requests_in([created])


def _created_object(detail: dict[str, Any]) -> S3Object | None:
    match detail:
        case {"bucket": {"name": str(bucket)}, "object": {"key": str(key), **rest}}:
            # Not Powertools' data class: it decodes the key, which is not URL-encoded here, and so
            # changes a key with a plus sign.
            return S3Object(
                bucket=bucket,
                key=key,
                version=str(rest.get("version-id") or ""),
                etag=str(rest.get("etag") or ""),
            )
    return None
