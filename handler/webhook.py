"""Calls the webhook when a job has ended. A call that fails changes nothing in the job.

What the body holds is decided here, how a call is signed in webhook_signature.py, and which
addresses a caller's URL may lead to in outbound.py.

requests and tenacity are imported with the first call: many jobs have no webhook, and a cold start
is long.
"""

import json
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from events.job import Caller
from handler.callers_urls import is_callers_webhook
from handler.daemon_future import in_background
from handler.emit import emit
from handler.job_events import JobEvent, WebhookDelivered, WebhookFailed
from handler.log import logger
from handler.outbound import Allowed, ForbiddenAddress
from handler.settings import Settings
from handler.webhook_signature import headers_of

if TYPE_CHECKING:
    from requests import Session
    from tenacity import RetryCallState

MAX_ATTEMPTS = 4
_BUDGET_S = 60.0
_LEAST_TIMEOUT_S = 0.1
# A server that answers one of these may accept the same call a moment later.
_TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})


class _TryAgain(Exception):
    """This attempt failed, another one may succeed."""


def deliver(
    response: dict[str, Any],
    caller: Caller,
    settings: Settings,
    *,
    event_id: str,
    budget_s: float | None,
    max_attempts: int = MAX_ATTEMPTS,
    report: Callable[[JobEvent], None] = emit,
) -> bool:
    """POST the webhook body, signed if there is a secret, at most four times within `budget_s`.

    Returns whether the receiver took it, which `report` gets as an event. Never raises. All
    attempts have the same `event_id`, body and time.
    """
    url = caller.webhook_url or settings.webhook_url
    host = _host_of(url)
    budget_s = max(min(_BUDGET_S, _BUDGET_S if budget_s is None else budget_s), _LEAST_TIMEOUT_S)
    try:
        body = json.dumps(body_of(response, caller)).encode()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "lambda-comfyui",
            **headers_of(event_id, int(time.time()), body, _secrets_of(caller, settings)),
        }
        timeout_s = caller.webhook_timeout_s or settings.webhook_timeout_s
        # The timeout of requests is one between two bytes: a server that sends a byte now and then
        # is never late. So the attempts run in a thread that is not waited for beyond the budget.
        allowed = settings.outbound_allow if is_callers_webhook(caller, settings) else None
        call = in_background(
            lambda: _post(url, body, headers, timeout_s, budget_s, allowed, max_attempts)
        )
        status = call.result(budget_s)
    except TimeoutError:
        report(WebhookFailed(host=host, reason=f"no answer within {budget_s:.0f} s"))
    except (_TryAgain, ForbiddenAddress) as error:
        report(WebhookFailed(host=host, reason=str(error)))
    except Exception as error:
        # Its text can hold the whole URL, and with it a token.
        report(WebhookFailed(host=host, reason=type(error).__name__))
    else:
        if status < 300:
            report(WebhookDelivered(host=host, status=status))
            return True
        report(WebhookFailed(host=host, reason=f"HTTP {status}"))
    return False


def is_named(caller: Caller, settings: Settings) -> bool:
    """Whether the request or the environment names a webhook."""
    return bool(caller.webhook_url or settings.webhook_url)


def new_event_id() -> str:
    """An id that no other event has."""
    return f"msg_{uuid.uuid4().hex}"


def body_of(response: dict[str, Any], caller: Caller) -> dict[str, Any]:
    """The body: parts of the response, and the caller's extra_params as `extra`.

    See events/contract/webhook.schema.json. Files are without their base64: receivers of webhooks
    limit the size of a body.
    """
    names = ("id", "status", "message", "output", "timings", "error", "progress")
    body = {name: response[name] for name in names if name in response}
    body["output"] = [
        {name: value for name, value in item.items() if name != "base64"}
        for item in response["output"]
    ]
    return body | {"extra": caller.extra_params}


def _secrets_of(caller: Caller, settings: Settings) -> tuple[str, ...]:
    """The secrets that sign a call, the first one in both forms.

    The operator's sign only the operator's webhook: a caller must not get a signature by them.
    """
    if caller.webhook_secret:
        return (caller.webhook_secret,)
    if is_callers_webhook(caller, settings):
        return ()
    return tuple(filter(None, (settings.webhook_secret, settings.webhook_second_secret)))


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or "?"
    except ValueError:
        return "?"


def _post(
    url: str,
    body: bytes,
    headers: dict[str, str],
    timeout_s: float,
    budget_s: float,
    allowed: Allowed | None,
    max_attempts: int,
) -> int:
    """The HTTP status of the last attempt.

    `allowed` restricts the addresses of a caller's URL. Raises _TryAgain if all attempts failed,
    ForbiddenAddress for an address that callers may not reach, requests.RequestException or
    ValueError if the URL cannot be called at all.
    """
    from tenacity import (  # noqa: PLC0415 - see the module's first lines
        Retrying,
        retry_if_exception_type,
        stop_after_attempt,
        stop_before_delay,
        wait_exponential_jitter,
    )

    until = time.monotonic() + budget_s
    attempts = Retrying(
        stop=stop_after_attempt(max_attempts) | stop_before_delay(budget_s),
        wait=wait_exponential_jitter(multiplier=0.5, max=8),
        retry=retry_if_exception_type(_TryAgain),
        before_sleep=_log_retry,
        reraise=True,
    )
    with _session(allowed) as session:
        return attempts(
            lambda: _post_once(
                session,
                url,
                body,
                headers,
                min(timeout_s, max(until - time.monotonic(), _LEAST_TIMEOUT_S)),
            )
        )


def _session(allowed: Allowed | None) -> "Session":
    if allowed is None:
        import requests  # noqa: PLC0415 - see the module's first lines

        return requests.Session()
    from handler.outbound_connections import callers_session  # noqa: PLC0415

    return callers_session(allowed)


def _post_once(
    session: "Session", url: str, body: bytes, headers: dict[str, str], timeout_s: float
) -> int:
    import requests  # noqa: PLC0415 - see the module's first lines

    try:
        # The status is enough: the body of the answer is not waited for.
        with session.post(
            url, data=body, headers=headers, timeout=timeout_s, allow_redirects=False, stream=True
        ) as answer:
            status = answer.status_code
    except (requests.ConnectionError, requests.Timeout) as error:
        raise _TryAgain(type(error).__name__) from None
    if status in _TRANSIENT_STATUSES:
        raise _TryAgain(f"HTTP {status}")
    return status


def _log_retry(state: "RetryCallState") -> None:
    reason = str(state.outcome.exception()) if state.outcome else ""
    logger.warning("a webhook call failed and is repeated", extra={"reason": reason})
