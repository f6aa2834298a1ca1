"""The HTTP status of a response, and when a client may try again."""

from http import HTTPStatus

from events.errors import Cancelled, DeadlineExceeded, IdConflict, InvalidRequest, class_of
from events.event_context import Response

RETRY_AFTER_S = 30
# nginx's word for a client that did not wait; HTTP has none.
CLIENT_CLOSED_REQUEST = 499
_STATUS = {
    InvalidRequest: HTTPStatus.BAD_REQUEST,
    Cancelled: HTTPStatus.CONFLICT,
    IdConflict: HTTPStatus.CONFLICT,
}


def status_of(response: Response) -> HTTPStatus:
    """How the job ended, or 202 if it has not."""
    # A completed job has an error, too, if its files did not reach the bucket.
    if response["status"] == "completed":
        return HTTPStatus.OK
    if "error" not in response:
        return HTTPStatus.ACCEPTED
    error = response["error"]
    # Clients retry after a 5xx, some of them without a limit: only a retryable error is one.
    if not error["retryable"]:
        return _STATUS.get(class_of(error), HTTPStatus.UNPROCESSABLE_ENTITY)
    if class_of(error) is DeadlineExceeded:
        return HTTPStatus.GATEWAY_TIMEOUT
    return HTTPStatus.SERVICE_UNAVAILABLE


def headers_of(response: Response, status: HTTPStatus) -> dict[str, str]:
    """The headers that go with the status."""
    if status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return {}
    return {"Retry-After": str(response["error"].get("retry_after_s", RETRY_AFTER_S))}
