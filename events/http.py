"""`POST /generate/sync` through API Gateway (REST and HTTP APIs), a function URL or an ALB.

The body is one request, the reply's body the documented response; the status says how the job
ended. Powertools' data classes know the shapes of the events and of the reply's headers; they are
imported with the first call.

https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-develop-integrations-lambda.html
https://docs.aws.amazon.com/lambda/latest/dg/urls-invocation.html
https://docs.aws.amazon.com/elasticloadbalancing/latest/application/lambda-functions.html
"""

import json
import re
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from events.contract.response_size import shrink
from events.errors import Cancelled, DeadlineExceeded, IdConflict, InvalidRequest, class_of
from events.event_context import EventContext, Response

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.data_classes.common import BaseProxyEvent

ROUTE = "/generate/sync"
RETRY_AFTER_S = 30
# Of a whole reply, in which the body is a string: its quotes are escaped once more.
# https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html
MAX_REPLY_BYTES = 6 * 1024 * 1024 - 4096
# https://docs.aws.amazon.com/elasticloadbalancing/latest/application/lambda-functions.html
MAX_ALB_REPLY_BYTES = 1024 * 1024 - 4096
_STATUS = {
    InvalidRequest: HTTPStatus.BAD_REQUEST,
    Cancelled: HTTPStatus.CONFLICT,
    IdConflict: HTTPStatus.CONFLICT,
}
# Behind API Gateway the path may begin with the stage, or with the base path of a custom domain.
_GATEWAY_ROUTE = re.compile(rf"(/.+)?{ROUTE}")
# A REST API passes a slash at the end on.
_REST_API_ROUTE = re.compile(rf"(/.+)?{ROUTE}/*")
_PLAIN_ROUTE = re.compile(ROUTE)


@dataclass(frozen=True, slots=True)
class _Call:
    """One HTTP call, the same for API Gateway, function URLs and load balancers."""

    event: "BaseProxyEvent"
    path: str
    route: re.Pattern[str]
    max_bytes: int = MAX_REPLY_BYTES


@dataclass(frozen=True, slots=True)
class _Answer:
    status: HTTPStatus
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)


def matches(event: Any) -> bool:
    return _is_load_balancer(event) or _is_version_1(event) or _is_version_2(event)


def process(event: dict[str, Any], context: EventContext) -> Response:
    """Answer the call, in the shape that the service in front of the function expects."""
    call = _call_of(event)
    answer = _answer(call, context)
    # https://docs.aws.amazon.com/powertools/python/latest/utilities/data_classes/
    headers: dict[str, str | list[str]] = {"Content-Type": "application/json", **answer.headers}
    reply = {
        "statusCode": answer.status.value,
        "body": json.dumps(answer.body, ensure_ascii=False),
        "isBase64Encoded": False,
        **call.event.header_serializer().serialize(headers, cookies=[]),
    }
    if _is_load_balancer(event):
        reply["statusDescription"] = f"{answer.status.value} {answer.status.phrase}"
    return reply


def _call_of(event: dict[str, Any]) -> _Call:
    from aws_lambda_powertools.utilities.data_classes import (  # noqa: PLC0415
        ALBEvent,
        APIGatewayProxyEvent,
        APIGatewayProxyEventV2,
    )

    if _is_load_balancer(event):
        balancer = ALBEvent(event)
        return _Call(balancer, balancer.path, _PLAIN_ROUTE, MAX_ALB_REPLY_BYTES)
    if _is_version_1(event):
        version_1 = APIGatewayProxyEvent(event)
        return _Call(version_1, version_1.path, _REST_API_ROUTE)
    # Not `path`, which cuts off as many characters as the stage has, even where there are others.
    version_2 = APIGatewayProxyEventV2(event)
    is_function_url = ".lambda-url." in str(event["requestContext"].get("domainName"))
    return _Call(version_2, version_2.raw_path, _PLAIN_ROUTE if is_function_url else _GATEWAY_ROUTE)


def _answer(call: _Call, context: EventContext) -> _Answer:
    if not call.route.fullmatch(call.path):
        return _Answer(HTTPStatus.NOT_FOUND, {"message": f"the only route is POST {ROUTE}"})
    if call.event.http_method.upper() != "POST":
        message = f"this route has only one method: POST {ROUTE}"
        return _Answer(HTTPStatus.METHOD_NOT_ALLOWED, {"message": message}, {"Allow": "POST"})
    response = context.handle(_request_in(call.event))
    status = _status_of(response)
    headers = {"Retry-After": _retry_after(response)} if status >= 500 else {}
    return _Answer(status, shrink(response, call.max_bytes, _size_in_reply), headers)


def _request_in(event: "BaseProxyEvent") -> Any:
    """The request in the body. A body that is not base64, UTF-8 or JSON is returned as text.

    The contract refuses it.
    """
    try:
        return event.json_body
    except (ValueError, RecursionError):
        return str(event.body)


def _status_of(response: Response) -> HTTPStatus:
    # A completed job has an error, too, if its files did not reach the bucket.
    if response["status"] == "completed":
        return HTTPStatus.OK
    error = response["error"]
    # Clients retry after a 5xx, some of them without a limit: only a retryable error is one.
    if not error["retryable"]:
        return _STATUS.get(class_of(error), HTTPStatus.UNPROCESSABLE_ENTITY)
    if class_of(error) is DeadlineExceeded:
        return HTTPStatus.GATEWAY_TIMEOUT
    return HTTPStatus.SERVICE_UNAVAILABLE


def _retry_after(response: Response) -> str:
    return str(response["error"].get("retry_after_s", RETRY_AFTER_S))


def _size_in_reply(body: Response) -> int:
    return len(json.dumps(json.dumps(body, ensure_ascii=False), ensure_ascii=False).encode())


def _is_load_balancer(event: Any) -> bool:
    return _is_call(event, "httpMethod", "path") and isinstance(
        event["requestContext"].get("elb"), dict
    )


def _is_version_1(event: Any) -> bool:
    return _is_call(event, "httpMethod", "path", "resource")


def _is_version_2(event: Any) -> bool:
    if not _is_call(event, "rawPath") or event.get("version") != "2.0":
        return False
    call = event["requestContext"].get("http")
    return isinstance(call, dict) and isinstance(call.get("method"), str)


def _is_call(event: Any, *texts: str) -> bool:
    return (
        isinstance(event, dict)
        and isinstance(event.get("requestContext"), dict)
        and isinstance(event.get("body"), str | None)
        and isinstance(event.get("headers"), dict | None)
        and isinstance(event.get("multiValueHeaders"), dict | None)
        and all(isinstance(event.get(name), str) for name in texts)
    )
