"""What errors of the network and of the disk mean for a download."""

import errno
import http.client
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from handler.outbound import ForbiddenAddress
from runtime.models.errors import (
    AccessDeniedError,
    ConnectionLostError,
    DiskFullError,
    TargetError,
)

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Raises DiskFullError or TargetError for an OSError."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise DiskFullError(
                f"{target}: no space is left for it; free some, or download to a larger disk"
            ) from error
        raise TargetError(f"{target} cannot be written: {error.strerror or error}") from error


@contextmanager
def network_errors(shown_source: str) -> Iterator[None]:
    """Raises ConnectionLostError for the errors of sockets, AccessDeniedError for a forbidden host.

    An error of a certificate does not pass by itself, so it is an AccessDeniedError, too.
    """
    try:
        yield
    except ForbiddenAddress as error:
        raise AccessDeniedError(f"{shown_source}: {error}") from None
    except ssl.SSLCertVerificationError as error:
        raise AccessDeniedError(f"{shown_source}: {error.verify_message}") from None
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ConnectionLostError(f"{shown_source}: {reason}") from None
