"""HTTP calls to a caller's URLs: they connect only to an address that was checked.

A call looks its host up once and connects to one of the addresses of that look-up, so a name server
that answers differently the next time (DNS rebinding) changes nothing. The rule is in outbound.py.

If the environment names a proxy (HTTPS_PROXY, …), the connection goes to the proxy, which looks
the host up itself; the host is checked here before the call.

This module is imported with the first call, because of requests. A webhook does not need botocore.
"""

from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.utils import select_proxy
from urllib3.exceptions import NewConnectionError
from urllib3.util import parse_url

from handler.outbound import Allowed, addresses_of

if TYPE_CHECKING:
    from botocore.awsrequest import AWSPreparedRequest, AWSResponse

_S3_CONNECT_TIMEOUT_S, _S3_READ_TIMEOUT_S = 10, 30


def callers_session(allowed: Allowed) -> requests.Session:
    """A session whose calls raise ForbiddenAddress for a host that callers may not reach."""
    session = requests.Session()
    # Without it, requests sends the credentials that ~/.netrc has for the host.
    session.auth = lambda request: request
    for scheme in ("http://", "https://"):
        session.mount(scheme, _CheckedAdapter(allowed))
    return session


def restrict(s3: Any, allowed: Allowed) -> None:
    """Let a client of boto3 send its calls over a session of `callers_session`.

    botocore sends no request of its own if a handler of its event `before-send` gives a response:
    https://docs.aws.amazon.com/boto3/latest/guide/events.html
    """
    session = callers_session(allowed)

    def send(request: "AWSPreparedRequest", **_: Any) -> "AWSResponse":
        return _send_for_boto3(session, request)

    s3.meta.events.register("before-send.s3", send)


def _send_for_boto3(session: requests.Session, request: "AWSPreparedRequest") -> "AWSResponse":
    """Send a signed request as it is. Raises botocore's errors if no server answers."""
    from botocore.awsrequest import AWSResponse  # noqa: PLC0415
    from botocore.exceptions import EndpointConnectionError, ReadTimeoutError  # noqa: PLC0415

    prepared = requests.PreparedRequest()
    prepared.method, prepared.url, prepared.body = request.method, request.url, request.body
    prepared.headers = requests.structures.CaseInsensitiveDict(
        {name: _as_text(value) for name, value in request.headers.items()}
    )
    # It is not signed, and requests does not wait for the answer to it.
    prepared.headers.pop("Expect", None)
    settings = session.merge_environment_settings(request.url, {}, True, None, None)
    try:
        response = session.send(
            prepared,
            timeout=(_S3_CONNECT_TIMEOUT_S, _S3_READ_TIMEOUT_S),
            allow_redirects=False,
            **settings,
        )
    except requests.ConnectionError as error:
        raise EndpointConnectionError(endpoint_url=request.url, error=error) from error
    except requests.ReadTimeout as error:
        # botocore repeats a call after its own errors alone.
        raise ReadTimeoutError(endpoint_url=request.url, error=error) from error
    return AWSResponse(request.url, response.status_code, response.headers, response.raw)


def _as_text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


class _CheckedAdapter(HTTPAdapter):
    """Sends a request to a checked address of its host, under the host's name."""

    def __init__(self, allowed: Allowed) -> None:
        self._allowed = allowed
        super().__init__()

    def send(
        self, request: requests.PreparedRequest, *args: Any, **kwargs: Any
    ) -> requests.Response:
        url = str(request.url)
        if select_proxy(url, kwargs.get("proxies")):
            # A host without an address here may have one at the proxy.
            with suppress(OSError, UnicodeError):
                self._addresses_of(url)
            return super().send(request, *args, **kwargs)
        try:
            addresses = self._addresses_of(url)
        except (OSError, UnicodeError) as error:
            raise requests.ConnectionError(f"no connection: {error}", request=request) from error
        *others, last = addresses
        for address in others:
            with suppress(_NotConnected):
                return self._send_to(address, request, *args, **kwargs)
        return self._send_to(last, request, *args, **kwargs)

    def build_connection_pool_key_attributes(
        self, request: requests.PreparedRequest, verify: Any, cert: Any = None
    ) -> tuple[Any, Any]:
        """Let TLS ask for, and verify, the name in the Host header instead of the address.

        https://requests.readthedocs.io/en/latest/api/#requests.adapters.HTTPAdapter
        """
        attributes = super().build_connection_pool_key_attributes(request, verify, cert)
        host_params, pool_kwargs = attributes[0], dict(attributes[1])
        name = urlsplit(f"//{request.headers.get('Host', '')}").hostname
        if name and host_params["scheme"] == "https":
            pool_kwargs |= {"server_hostname": name, "assert_hostname": name}
        return host_params, pool_kwargs

    def _addresses_of(self, url: str) -> list[str]:
        parts = parse_url(url)
        return addresses_of(parts.host or "", parts.port, self._allowed)

    def _send_to(
        self, address: str, request: requests.PreparedRequest, *args: Any, **kwargs: Any
    ) -> requests.Response:
        parts = parse_url(str(request.url))
        host = f"[{address}]" if ":" in address else address
        pinned = request.copy()
        pinned.url = parts._replace(auth=None, host=host).url
        pinned.headers.setdefault("Host", parts.netloc or "")
        try:
            response = super().send(pinned, *args, **kwargs)
        except requests.ConnectTimeout as error:
            raise _NotConnectedInTime(error, request=request) from error
        except requests.ConnectionError as error:
            reason = getattr(error.args[0], "reason", None) if error.args else None
            if isinstance(reason, NewConnectionError):
                raise _NotConnected(error, request=request) from error
            raise
        response.url, response.request = str(request.url), request
        return response


class _NotConnected(requests.ConnectionError):
    """No connection was made, so nothing was sent: another address may be tried."""


class _NotConnectedInTime(_NotConnected, requests.ConnectTimeout):
    """The same, because the time was over."""
