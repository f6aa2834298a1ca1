"""Tells the caller's webhook how a job ended. If that fails, the job's outcome stays as it is.

Its libraries are imported with the first call: many jobs have no webhook, and a cold start is long.
"""

import hashlib
import hmac
import json
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from events.job import Caller
from handler.daemon_future import in_background
from handler.log import emit, logger
from handler.settings import Settings

if TYPE_CHECKING:
    from tenacity import RetryCallState

SIGNATURE_HEADER = "X-Webhook-Signature"
MAX_ATTEMPTS = 4
_BUDGET_S = 60.0
# A server that answers one of these may take the same call a moment later.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


class _TryAgain(Exception):
    """This attempt did not get through, another one may."""


def deliver(
    response: dict[str, Any], caller: Caller, settings: Settings, *, budget_s: float | None
) -> None:
    """POST the webhook body, signed if there is a secret, at most four times within `budget_s`.

    Never raises. The signature is over the exact bytes of the body (HMAC, RFC 2104).
    """
    url = caller.webhook_url or settings.webhook_url
    if not url:
        return
    import requests  # noqa: PLC0415
    from tenacity import (  # noqa: PLC0415
        RetryError,
        Retrying,
        retry_if_exception_type,
        stop_after_attempt,
        stop_before_delay,
        wait_exponential_jitter,
    )

    body = json.dumps(body_of(response, caller)).encode()
    headers = {"Content-Type": "application/json", "User-Agent": "lambda-comfyui"}
    if secret := caller.webhook_secret or settings.webhook_secret:
        headers[SIGNATURE_HEADER] = sign(body, secret)
    timeout_s = caller.webhook_timeout_s or settings.webhook_timeout_s
    budget_s = max(min(_BUDGET_S, _BUDGET_S if budget_s is None else budget_s), 0.1)
    give_up = time.monotonic() + budget_s

    def post() -> int:
        return _post(url, body, headers, min(timeout_s, max(give_up - time.monotonic(), 0.1)))

    attempts = Retrying(
        stop=stop_after_attempt(MAX_ATTEMPTS) | stop_before_delay(budget_s),
        wait=wait_exponential_jitter(multiplier=0.5, max=8),
        retry=retry_if_exception_type(_TryAgain),
        before_sleep=_log_retry,
    )
    host = "?"
    try:
        host = urlsplit(url).hostname or host
        # The timeout of requests is one between two bytes: who sends one now and then is never
        # late, and keeps this thread for as long as it does so.
        status = in_background(lambda: attempts(post)).result(budget_s)
    except TimeoutError:
        _log_failure(host, f"no answer within {budget_s:.0f} s")
    except RetryError as error:
        _log_failure(host, str(error.last_attempt.exception()))
    except (requests.RequestException, ValueError) as error:
        # The text of these exceptions can hold the whole URL, and with it a token.
        _log_failure(host, type(error).__name__)
    else:
        if status < 300:
            emit("webhook.delivered", f"webhook on {host} called", status=status)
        else:
            _log_failure(host, f"HTTP {status}")


def body_of(response: dict[str, Any], caller: Caller) -> dict[str, Any]:
    """`{id, status, message, output, timings, extra}`; see events/contract/webhook.schema.json."""
    kept = ("id", "status", "message", "output", "timings")
    return {name: response[name] for name in kept} | {"extra": caller.extra_params}


def sign(body: bytes, secret: str) -> str:
    """`sha256=<hex HMAC-SHA256 of the body>`."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def _post(url: str, body: bytes, headers: dict[str, str], timeout_s: float) -> int:
    import requests  # noqa: PLC0415

    try:
        # The status is enough: the body of the answer is not waited for.
        with requests.post(
            url, data=body, headers=headers, timeout=timeout_s, allow_redirects=False, stream=True
        ) as answer:
            status = answer.status_code
    except (requests.ConnectionError, requests.Timeout) as error:
        raise _TryAgain(type(error).__name__) from None
    if status in _PASSING:
        raise _TryAgain(f"HTTP {status}")
    return status


def _log_retry(state: "RetryCallState") -> None:
    assert state.outcome is not None
    logger.warning(
        "the webhook did not take the call", extra={"reason": str(state.outcome.exception())}
    )


def _log_failure(host: str, reason: str) -> None:
    logger.warning(
        "the webhook was not delivered",
        extra={"event": "webhook.failed", "host": host, "reason": reason},
    )
