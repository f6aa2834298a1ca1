"""What differs where the caller and the worker are on the same machine: `invoke`, `start-lambda`.

Requests may name loopback there, because a webhook receiver or an S3 server under development
listens on it. Which other addresses a request may name is decided in handler/outbound.py.
"""

from collections.abc import Mapping

_VARIABLE = "OUTBOUND_ALLOW"
_LOOPBACK = "127.0.0.0/8,::1"


def allow_loopback(environ: Mapping[str, str]) -> Mapping[str, str]:
    """The environment in which requests may name loopback, unless OUTBOUND_ALLOW is set."""
    if environ.get(_VARIABLE, "").strip():
        return environ
    return {**environ, _VARIABLE: _LOOPBACK}
