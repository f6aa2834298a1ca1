"""Which URLs of a job are the caller's, and what a request with such a URL must be.

A URL of the request that the worker's environment names as well is the operator's. Which addresses
a caller's URL may lead to is decided in outbound.py.
"""

from urllib.parse import urlsplit

from events.errors import InvalidRequest
from events.job import Caller, Job, S3Override
from handler.daemon_future import in_background
from handler.outbound import Allowed, ForbiddenAddress, addresses_of
from handler.settings import Settings

# A name server that is slow or absent must not delay the job: the connection is checked again.
_LOOKUP_S = 2.0


def is_callers_webhook(caller: Caller, settings: Settings) -> bool:
    """Whether the request names a webhook that the environment does not name."""
    return caller.webhook_url not in ("", settings.webhook_url)


def is_callers_endpoint(s3: S3Override, settings: Settings) -> bool:
    """Whether the request names a store that the environment does not name."""
    return s3.endpoint_url not in ("", settings.s3_endpoint_url)


def refuse_forbidden(job: Job, settings: Settings) -> None:
    """Refuse a request whose URLs lead to an address that callers may not reach.

    A store of the caller's needs both keys of its own: otherwise it would receive a signature by
    the operator's. A host that cannot be resolved within two seconds is not refused here. Raises
    InvalidRequest.
    """
    if is_callers_endpoint(job.s3, settings):
        if not (job.s3.access_key_id and job.s3.secret_access_key):
            raise InvalidRequest(
                "input.s3: found an endpoint_url without both access_key_id and secret_access_key,"
                " expected all three: the worker's own keys are not used for another store"
            )
        _refuse_host("input.s3.endpoint_url", job.s3.endpoint_url, settings.outbound_allow)
    if is_callers_webhook(job.caller, settings):
        _refuse_host("input.webhook.url", job.caller.webhook_url, settings.outbound_allow)


def _refuse_host(path: str, url: str, allowed: Allowed) -> None:
    try:
        host = urlsplit(url).hostname or ""
        in_background(lambda: addresses_of(host, None, allowed)).result(_LOOKUP_S)
    except ForbiddenAddress as error:
        raise InvalidRequest(f"{path}: {error}") from None
    except (OSError, ValueError):
        # It has no address, or is no URL: that is reported when it is called.
        return
