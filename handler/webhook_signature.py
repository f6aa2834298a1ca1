"""The headers that identify and sign a webhook call.

`webhook-id`, `webhook-timestamp` and `webhook-signature` are those of Standard Webhooks
(https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md): the
signature covers the id and the time, so a receiver can refuse a call that is repeated by someone
else. `X-Webhook-Signature` covers the body alone; it is for receivers that know only this one.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

BODY_SIGNATURE = "X-Webhook-Signature"
ID = "webhook-id"
TIMESTAMP = "webhook-timestamp"
SIGNATURE = "webhook-signature"
_BASE64_SECRET = "whsec_"


def headers_of(
    event_id: str, timestamp: int, body: bytes, secrets: Sequence[str]
) -> dict[str, str]:
    """The headers of a call; `timestamp` is Unix time in seconds.

    `webhook-signature` has one signature for each secret, `X-Webhook-Signature` that of the first
    one. Without a secret, neither is there.
    """
    headers = {ID: event_id, TIMESTAMP: str(timestamp)}
    if secrets:
        signed = f"{event_id}.{timestamp}.".encode() + body
        headers[SIGNATURE] = " ".join(_standard_signature(signed, secret) for secret in secrets)
        headers[BODY_SIGNATURE] = _body_signature(body, secrets[0])
    return headers


def _standard_signature(signed: bytes, secret: str) -> str:
    """`v1,<base64 HMAC-SHA256 of id, time and body>`."""
    digest = hmac.new(_key_of(secret), signed, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def _body_signature(body: bytes, secret: str) -> str:
    """`sha256=<hex HMAC-SHA256 of the body>` (RFC 2104)."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def _key_of(secret: str) -> bytes:
    """The bytes of a secret: those that `whsec_<base64>` stands for, else the text in UTF-8."""
    if secret.startswith(_BASE64_SECRET):
        try:
            return base64.b64decode(secret.removeprefix(_BASE64_SECRET), validate=True)
        except binascii.Error:
            pass
    return secret.encode()
