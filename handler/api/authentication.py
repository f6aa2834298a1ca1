"""Who may call the API: the bearers of its token (RFC 6750), or without one, local programs."""

import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from handler.api.json_answer import message

# A load balancer asks these without a token.
OPEN_PATHS = frozenset({"/health", "/ready"})


class TokenAuthentication:
    """Answers 401 to a call without the token, but for OPEN_PATHS."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        needs_token = scope["type"] == "http" and scope["path"] not in OPEN_PATHS
        if needs_token and not self._is_authorized(Headers(scope=scope)):
            text = "this call needs the header 'Authorization: Bearer <API_TOKEN>'"
            app = message(401, text, {"WWW-Authenticate": "Bearer"})
        await app(scope, receive, send)

    def _is_authorized(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip().encode("latin-1")
        return scheme.lower() == "bearer" and hmac.compare_digest(given, self._token)


class LocalCallers:
    """Answers 403 to calls that a web page makes to an API without a token on its reader's machine.

    A browser sends the page's own origin with such a call. A page whose name leads to 127.0.0.1
    (DNS rebinding) sends its name as the host:
    https://developer.mozilla.org/en-US/docs/Web/HTTP/Reference/Headers/Origin
    """

    def __init__(self, app: ASGIApp, setting: str = "API_TOKEN") -> None:
        self._app, self._setting = app, setting

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and not _is_local(Headers(scope=scope)):
            app = message(403, f"without {self._setting}, the API answers local programs alone")
        await app(scope, receive, send)


def _is_local(headers: Headers) -> bool:
    host, origin = headers.get("host", ""), headers.get("origin")
    if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
        return False
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def read_token(setting: str) -> str:
    """The token that API_TOKEN names: itself, or the secret whose ARN it is.

    Raises what boto3 raises, and ValueError for an empty secret.
    """
    if not setting.startswith("arn:"):
        return setting
    import boto3  # noqa: PLC0415 - only where a secret is named

    answer = boto3.session.Session().client("secretsmanager").get_secret_value(SecretId=setting)
    token = str(answer["SecretString"]).strip()
    if not token:
        raise ValueError("the secret of API_TOKEN is empty")
    return token
