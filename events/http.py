"""`POST /generate/sync` through API Gateway (REST and HTTP APIs), a function URL or an ALB.

The body is one request, the answer's body the documented response, and the status tells how it
ended. Powertools' event handler knows the four shapes; it is imported with the first call.

https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-develop-integrations-lambda.html
https://docs.aws.amazon.com/lambda/latest/dg/urls-invocation.html
https://docs.aws.amazon.com/elasticloadbalancing/latest/application/lambda-functions.html
"""

import json
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

from events.contract.response_size import smaller

if TYPE_CHECKING:
    from aws_lambda_powertools.event_handler import ApiGatewayResolver, Response
    from aws_lambda_powertools.utilities.data_classes.common import BaseProxyEvent

Handle = Callable[[Any], dict[str, Any]]

ROUTE = "/generate/sync"
RETRY_AFTER_S = 30
# Of a whole reply, in which the body is a string: its quotes are escaped once more.
# https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html
MAX_REPLY_BYTES = 6 * 1024 * 1024 - 4096
# https://docs.aws.amazon.com/elasticloadbalancing/latest/application/lambda-functions.html
MAX_ALB_REPLY_BYTES = 1024 * 1024 - 4096
_STATUS = {
    "InvalidRequest": HTTPStatus.BAD_REQUEST,
    "Cancelled": HTTPStatus.CONFLICT,
}
# The stage, or the base path of a custom domain.
_GATEWAY_PREFIX = re.compile(rf"^/.+(?={ROUTE}$)")


def matches(event: Any) -> bool:
    return _is_load_balancer(event) or _is_version_1(event) or _is_version_2(event)


def process(event: dict[str, Any], handle: Handle) -> dict[str, Any]:
    """Route the call, and answer it as its front door expects."""
    from aws_lambda_powertools.event_handler import (  # noqa: PLC0415
        ALBResolver,
        APIGatewayHttpResolver,
        APIGatewayRestResolver,
        LambdaFunctionUrlResolver,
    )

    routes: ApiGatewayResolver
    if _is_load_balancer(event):
        return _for_load_balancer(_answer(ALBResolver(), event, handle, MAX_ALB_REPLY_BYTES))
    if _is_version_1(event):
        routes = APIGatewayRestResolver(strip_prefixes=[_GATEWAY_PREFIX])
    elif ".lambda-url." in str(event["requestContext"].get("domainName")):
        routes = LambdaFunctionUrlResolver()
    else:
        routes = APIGatewayHttpResolver(strip_prefixes=[_GATEWAY_PREFIX])
    return _answer(routes, event, handle, MAX_REPLY_BYTES)


def _answer(
    routes: "ApiGatewayResolver", event: dict[str, Any], handle: Handle, max_bytes: int
) -> dict[str, Any]:
    @routes.post(ROUTE)
    def generate() -> "Response[str]":
        response = handle(_request_in(routes.current_event))
        status = _status_of(response)
        # What a client may just repeat.
        again = "error" in response and status >= 500 and response["error"]["retryable"]
        headers = {"Retry-After": str(RETRY_AFTER_S)} if again else {}
        return _json(status, smaller(response, max_bytes, _size_in_reply), headers)

    @routes.not_found
    def elsewhere(_: Exception) -> "Response[str]":
        # Powertools knows no 405: what is not found includes the route with another method.
        if str(routes.context["_path"]) == ROUTE:
            message = f"this route takes POST alone: POST {ROUTE}"
            return _json(HTTPStatus.METHOD_NOT_ALLOWED, {"message": message}, {"Allow": "POST"})
        return _json(HTTPStatus.NOT_FOUND, {"message": f"the only route is POST {ROUTE}"})

    # It hands the context of Lambda to routes, and ours ask for none.
    reply = routes.resolve(_with_whole_path(event), cast(Any, None))
    return reply


def _request_in(call: "BaseProxyEvent") -> Any:
    """The request in the body; what is not base64, UTF-8 or JSON is refused as text."""
    try:
        return call.json_body
    except (ValueError, RecursionError):
        return str(call.body)


def _status_of(response: dict[str, Any]) -> HTTPStatus:
    # A job that ran but whose files did not reach the bucket is completed, and has an error, too.
    if response["status"] == "completed":
        return HTTPStatus.OK
    error = response["error"]
    # Clients repeat a 5xx, some of them for ever: only what a repeat may help gets one.
    if not error["retryable"]:
        return _STATUS.get(error["type"], HTTPStatus.UNPROCESSABLE_ENTITY)
    if error["type"] == "DeadlineExceeded":
        return HTTPStatus.GATEWAY_TIMEOUT
    return HTTPStatus.SERVICE_UNAVAILABLE


def _json(
    status: HTTPStatus, body: dict[str, Any], headers: dict[str, str] | None = None
) -> "Response[str]":
    from aws_lambda_powertools.event_handler import Response, content_types  # noqa: PLC0415

    text = json.dumps(body, ensure_ascii=False)
    return Response(status.value, content_types.APPLICATION_JSON, text, cast(Any, headers or {}))


def _size_in_reply(body: Any) -> int:
    return len(json.dumps(json.dumps(body, ensure_ascii=False), ensure_ascii=False).encode())


def _with_whole_path(event: dict[str, Any]) -> dict[str, Any]:
    """The event without its stage: Powertools would cut off as many characters as it has.

    Behind a custom domain the path does not begin with the stage; the prefix is stripped by name.
    """
    if "rawPath" not in event:
        return event
    return {**event, "requestContext": {**event["requestContext"], "stage": "$default"}}


def _for_load_balancer(reply: dict[str, Any]) -> dict[str, Any]:
    status = HTTPStatus(reply["statusCode"])
    return {**reply, "statusDescription": f"{status.value} {status.phrase}"}


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
