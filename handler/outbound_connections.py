"""HTTP connections for a caller's URLs: they connect only to an address that was checked.

A connection looks its host up once, and connects to the addresses of that look-up: a name server
that answers differently the next time (DNS rebinding) changes nothing. The rule is in outbound.py.

If the environment names a proxy (HTTPS_PROXY, …), the connection goes to the proxy, which looks
the host up itself; the host is checked here before the call.

requests, boto3 and this module use urllib3, which is imported with the first call.
"""

import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, ClassVar

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError
from urllib3.util import parse_url
from urllib3.util.connection import create_connection

from handler.outbound import Allowed, addresses_of


def callers_session(allowed: Allowed) -> requests.Session:
    """A session whose calls raise ForbiddenAddress for a host that callers may not reach."""
    session = requests.Session()
    # Without it, requests sends the credentials that ~/.netrc has for the host.
    session.auth = lambda request: request
    for scheme in ("http://", "https://"):
        session.mount(scheme, _CheckedAdapter(allowed))
    return session


def restrict(s3: Any, allowed: Allowed) -> None:
    """Let a client of boto3 connect to what callers may reach.

    botocore has no public way to choose its connections. If a new version has other names, this
    raises AttributeError, and the client is not used.
    """
    manager = s3._endpoint.http_session._manager
    manager.pool_classes_by_scheme = _checked_pools(manager.pool_classes_by_scheme, allowed)


class _CheckedAdapter(HTTPAdapter):
    def __init__(self, allowed: Allowed) -> None:
        self._allowed = allowed
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _checked_pools(
            self.poolmanager.pool_classes_by_scheme, self._allowed
        )

    def send(
        self, request: requests.PreparedRequest, *args: Any, **kwargs: Any
    ) -> requests.Response:
        # For the calls that go through a proxy. A host without an address here may have one there.
        with suppress(OSError, UnicodeError):
            addresses_of(parse_url(str(request.url)).host or "", None, self._allowed)
        return super().send(request, *args, **kwargs)


class _CheckedConnection(HTTPConnection):
    """A connection of urllib3 to a host's checked addresses; the other base class sends over it."""

    allowed: ClassVar[Allowed]

    def _new_conn(self) -> socket.socket:
        """As urllib3's own method, which other classes of it replace as well."""
        try:
            return self._connect()
        except TimeoutError as error:
            raise ConnectTimeoutError(self, f"no connection: {error}") from error
        except (OSError, UnicodeError) as error:
            raise NewConnectionError(self, f"no connection: {error}") from error

    def _connect(self) -> socket.socket:
        failure = OSError("the host has no address")
        for address in addresses_of(self.host, self.port, self.allowed):
            try:
                return create_connection(
                    (address, self.port),
                    self.timeout,
                    source_address=self.source_address,
                    socket_options=self.socket_options,
                )
            except OSError as error:
                failure = error
        raise failure


def _checked_pools(
    pools: Mapping[str, type[HTTPConnectionPool]], allowed: Allowed
) -> dict[str, type[HTTPConnectionPool]]:
    """The same pools of connections, by URL scheme, with checked connections."""
    return {scheme: _checked_pool(pool, allowed) for scheme, pool in pools.items()}


def _checked_pool(pool: type[HTTPConnectionPool], allowed: Allowed) -> type[HTTPConnectionPool]:
    bases = (_CheckedConnection, pool.ConnectionCls)
    connection = type("CheckedConnection", bases, {"allowed": allowed})
    return type("CheckedPool", (pool,), {"ConnectionCls": connection})
