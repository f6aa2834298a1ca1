"""A call through API Gateway (REST and HTTP APIs), a function URL or an ALB.

What each route answers is decided in handler/api/, which the handler passes as
`EventContext.answer_http`: its framework is imported with the first call.

https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-develop-integrations-lambda.html
https://docs.aws.amazon.com/lambda/latest/dg/urls-invocation.html
https://docs.aws.amazon.com/elasticloadbalancing/latest/application/lambda-functions.html
"""

from typing import Any

from events.event_context import EventContext, Response


def matches(event: Any) -> bool:
    return is_load_balancer(event) or _is_version_1(event) or _is_version_2(event)


def process(event: dict[str, Any], context: EventContext) -> Response:
    """Answer the call, in the shape that the service in front of the function expects."""
    return context.answer_http(event, context.handle)


def is_load_balancer(event: Any) -> bool:
    """Whether the call came through an Application Load Balancer."""
    return _is_call(event, "httpMethod", "path") and isinstance(
        event["requestContext"].get("elb"), dict
    )


def is_function_url(event: dict[str, Any]) -> bool:
    """Whether a call that is one came through a function URL."""
    return ".lambda-url." in str(event["requestContext"].get("domainName"))


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
