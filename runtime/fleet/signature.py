"""The router's signatures, and how a worker checks them.

PyWorker checks RSA, PKCS#1 v1.5, SHA-256 over the URL alone, in a JSON text of its own form
(`vastai` 1.9.1, serverless/server/lib/backend.py). Our workers check a second signature of the same
kind, which also covers what the request may cost, its number, and until when it is good.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

_KEY_BITS = 2048
_PUBLIC_EXPONENT = 65537
# Of more workers than a fleet has.
_KEPT_URLS = 20_000


@dataclass(frozen=True, slots=True)
class Grant:
    """What a worker may do for a client: one request, `reqnum` of those that this worker was given.

    `expires` is in seconds of Unix time.
    """

    url: str
    endpoint: str
    cost: float
    reqnum: int
    request_idx: int
    expires: float


@dataclass(frozen=True, slots=True)
class Command:
    """What the router has a worker do: `wake` or `sleep`. `expires` as of a Grant."""

    url: str
    action: str
    expires: float


class Signer:
    """Signs with the private key of `pem`."""

    def __init__(self, pem: str) -> None:
        key = serialization.load_pem_private_key(pem.encode(), None)
        assert isinstance(key, rsa.RSAPrivateKey)
        self._key = key
        # A signature takes most of a millisecond.
        self._sign_url = lru_cache(_KEPT_URLS)(lambda url: self._sign(_text({"url": url})))

    @property
    def public_pem(self) -> str:
        return (
            self._key.public_key()
            .public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            .decode()
        )

    def sign_url(self, url: str) -> str:
        """The signature that PyWorker checks."""
        return self._sign_url(url)

    def sign(self, what: Grant | Command) -> str:
        """The signature that our workers check."""
        return self._sign(_text(asdict(what)))

    def _sign(self, message: bytes) -> str:
        signature = self._key.sign(message, padding.PKCS1v15(), hashes.SHA256())
        return base64.b64encode(signature).decode()


class Verifier:
    """Checks signatures with the public key of `pem`. Raises ValueError for another text."""

    def __init__(self, pem: str) -> None:
        key = serialization.load_pem_public_key(pem.encode())
        if not isinstance(key, rsa.RSAPublicKey):
            raise ValueError("the public key is not one of RSA")
        self._key = key

    def is_signed(self, what: Grant | Command, signature: str) -> bool:
        try:
            raw = base64.b64decode(signature, validate=True)
            self._key.verify(raw, _text(asdict(what)), padding.PKCS1v15(), hashes.SHA256())
        except (ValueError, InvalidSignature):
            return False
        return True


def new_key() -> str:
    """A new private key, as PEM."""
    key = rsa.generate_private_key(_PUBLIC_EXPONENT, _KEY_BITS)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


def _text(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message, indent=4, sort_keys=True).encode()
