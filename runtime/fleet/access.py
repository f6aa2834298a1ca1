"""Who may call the router: clients and operators with one token, workers with another."""

import hashlib
import hmac
from dataclasses import dataclass, field

from starlette.requests import Request


@dataclass(frozen=True, slots=True)
class Tokens:
    """`callers` is that of clients and operators, `workers` that of reports; "" for none."""

    callers: str = field(default="", repr=False)
    workers: str = field(default="", repr=False)

    @property
    def endpoint(self) -> str:
        """The key of an endpoint, with which clients ask for workers, and which workers see.

        It opens nothing but `/route/`, so a worker cannot act as a client's owner.
        """
        if not self.callers:
            return "none"
        return hmac.new(self.callers.encode(), b"endpoint", hashlib.sha256).hexdigest()

    def is_caller(self, given: str) -> bool:
        return not self.callers or _is_equal(given, self.callers)

    def is_client(self, given: str) -> bool:
        """Of `/route/`."""
        return self.is_caller(given) or _is_equal(given, self.endpoint)

    def is_worker(self, given: str) -> bool:
        return not self.workers or _is_equal(given, self.workers)


def given_token(request: Request, body: object = None) -> str:
    """The token of a call: its bearer token, `api_key` of its body or of its address."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip()
    in_body = body.get("api_key") if isinstance(body, dict) else None
    return str(in_body or request.query_params.get("api_key", ""))


def _is_equal(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())
