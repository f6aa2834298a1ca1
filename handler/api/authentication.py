"""The bearer token of the API: https://www.rfc-editor.org/rfc/rfc6750."""

import hmac
import json

from starlette.types import ASGIApp, Receive, Scope, Send

# A load balancer asks these without a token.
OPEN_PATHS = frozenset({"/health", "/ready"})


class TokenAuthentication:
    """Answers 401 to a call without the token, but for OPEN_PATHS. An empty token lets all call."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_open = not self._token or scope["type"] != "http" or scope["path"] in OPEN_PATHS
        if is_open or self._is_authorized(scope):
            await self._app(scope, receive, send)
            return
        message = "this call needs the header 'Authorization: Bearer <API_TOKEN>'"
        body = json.dumps({"message": message}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"www-authenticate", b"Bearer"),
        ]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _is_authorized(self, scope: Scope) -> bool:
        for name, value in scope["headers"]:
            if name == b"authorization":
                scheme, _, token = value.partition(b" ")
                return scheme.lower() == b"bearer" and hmac.compare_digest(
                    token.strip(), self._token
                )
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
