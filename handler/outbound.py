"""Which addresses a caller's URL may lead to: public ones, and those of OUTBOUND_ALLOW.

`webhook.url` and `s3.endpoint_url` of a request are a caller's text. Without this rule they reach
the services beside the worker: ComfyUI's own API, the private network, a cloud's metadata service
(https://cheatsheetseries.owasp.org/cheatsheets/Server_Side_Request_Forgery_Prevention_Cheat_Sheet.html).

Which URLs are a caller's, and how a request is refused, is decided in callers_urls.py. The
connections that obey this rule are in outbound_connections.py.
"""

import ipaddress
import re
import socket
from dataclasses import dataclass

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_HOST_NAME = re.compile(r"(?!-)[a-z0-9_-]+(\.[a-z0-9_-]+)*", re.ASCII)
# All of IPv6 that is routed in the internet:
# https://www.iana.org/assignments/ipv6-address-space/ipv6-address-space.xhtml
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
# An IPv4 address at the end of an IPv6 one: IPv4-mapped and IPv4-compatible (RFC 4291), NAT64
# (RFC 6052).
_IPV4_AT_THE_END = tuple(
    ipaddress.IPv6Network(text) for text in ("::ffff:0:0/96", "::/96", "64:ff9b::/96")
)
# They give credentials of the machine to any process on it, so OUTBOUND_ALLOW cannot permit them.
_METADATA = tuple(
    ipaddress.ip_network(text)
    for text in (
        "169.254.0.0/16",  # link-local: AWS, Google Cloud, Azure and others
        "fe80::/10",  # link-local
        "fd00:ec2::/32",  # AWS
        "fd20:ce::/32",  # Google Cloud
        "100.100.100.200/32",  # Alibaba Cloud
        "168.63.129.16/32",  # Azure's host
        "192.0.0.192/32",  # Oracle Cloud
    )
)


class ForbiddenAddress(ValueError):
    """A host has an address that callers may not reach. The message does not contain it.

    It is no OSError, because HTTP clients repeat a call after one.
    """


@dataclass(frozen=True, slots=True)
class Allowed:
    """OUTBOUND_ALLOW: the networks and host names that are permitted beside public addresses."""

    networks: tuple[Network, ...] = ()
    hosts: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, raw: str) -> "Allowed":
        """Read `10.1.0.0/16, 10.2.3.4, fd12::/16, hooks.internal`.

        Raises ValueError, whose text says what is expected.
        """
        networks, hosts = [], set()
        for item in filter(None, (part.strip().lower() for part in raw.split(","))):
            try:
                networks.append(ipaddress.ip_network(item))
            except ValueError:
                name = item.rstrip(".")
                # A name without a letter is a wrong address.
                if not _HOST_NAME.fullmatch(name) or not re.search("[a-z]", name):
                    raise ValueError(
                        "expected networks such as 10.1.0.0/16 and host names, separated by commas"
                    ) from None
                hosts.add(name)
        return cls(tuple(networks), frozenset(hosts))

    def check(self, host: str, address: Address) -> None:
        """Raise ForbiddenAddress if a caller may not reach this address of `host`."""
        inner = _without_ipv6_around(address)
        if _is_in(_METADATA, address) or _is_in(_METADATA, inner):
            raise ForbiddenAddress(
                "its host has a link-local or metadata address, which no request may name"
            )
        is_permitted = (
            host.lower().rstrip(".") in self.hosts
            or _is_in(self.networks, address)
            or _is_in(self.networks, inner)
        )
        if not is_permitted and not _is_public(inner):
            raise ForbiddenAddress(
                "its host has an address of a private or local network, expected a public one;"
                " the worker's operator can permit the host or the network in OUTBOUND_ALLOW"
            )


def addresses_of(host: str, port: int | None, allowed: Allowed) -> list[str]:
    """The addresses of a host, if callers may reach all of them, in the system's order.

    Every spelling of an address that the system accepts (`127.1`, `0x7f000001`, `2130706433`) is
    resolved like a name. An IPv6 address in brackets is accepted. Raises ForbiddenAddress; OSError
    or UnicodeError if the host has no address.
    """
    host = host.removeprefix("[").removesuffix("]")
    entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in entries))
    for address in addresses:
        allowed.check(host, ipaddress.ip_address(address))
    return addresses


def _is_in(networks: tuple[Network, ...], address: Address) -> bool:
    return any(address in network for network in networks)


def _is_public(address: Address) -> bool:
    """Whether the address is one host's and routed in the internet.

    https://docs.python.org/3/library/ipaddress.html#ipaddress.IPv4Address.is_global
    """
    if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_UNICAST:
        return False
    return address.is_global and not address.is_multicast


def _without_ipv6_around(address: Address) -> Address:
    """The IPv4 address that an IPv6 address leads to, else the address itself.

    `::` and `::1`, the unspecified address and loopback, become `0.0.0.0` and `0.0.0.1`: those are
    not public either.
    """
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if any(address in network for network in _IPV4_AT_THE_END):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.sixtofour:
        return address.sixtofour
    return address.teredo[1] if address.teredo else address
