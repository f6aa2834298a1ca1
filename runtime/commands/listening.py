"""The addresses at which `serve`, `start-lambda` and `router` listen."""

import ipaddress
import socket

from runtime.errors import LambdaComfyUIError

LOOPBACK = "127.0.0.1"
_BACKLOG = 128


class StartError(LambdaComfyUIError):
    """The command cannot start; the message says why, and what to change."""


def listen(address: str, port: int, arguments: str) -> socket.socket:
    """A socket that listens. Raises StartError, which names the arguments."""
    try:
        return socket.create_server((address, port), backlog=_BACKLOG)
    except OSError as error:
        text = f"cannot listen on {address}:{port}: {_reason(error)} ({arguments})"
        raise StartError(text) from error


def is_loopback(address: str) -> bool:
    """Whether only processes of this machine reach a server that listens on `address`."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _reason(error: OSError) -> str:
    """The operating system's text, without the address that `create_server` appends to it."""
    return str(error.strerror or error).partition(" (while attempting")[0]
