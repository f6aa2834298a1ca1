"""What errors of the network, of the disk and of our own code mean for a download."""

import errno
import http.client
import ssl
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from handler.outbound import ForbiddenAddress
from runtime.log import log
from runtime.models.errors import (
    AccessDeniedError,
    ConnectionLostError,
    DiskFullError,
    DownloadError,
    SourceMissingError,
    TargetError,
    TooSlowError,
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

    A TooSlowError of a connection, whose answer comes byte by byte, gets the name of its source.
    An error of a certificate does not pass by itself, so it is an AccessDeniedError, too. A URL
    that is not valid is a SourceMissingError without the reason, which may have the URL in it.
    """
    try:
        yield
    except ForbiddenAddress as error:
        raise AccessDeniedError(f"{shown_source}: {error}") from None
    except TooSlowError as error:
        raise TooSlowError(f"{shown_source}: {error}") from None
    except ssl.SSLCertVerificationError as error:
        raise AccessDeniedError(f"{shown_source}: {error.verify_message}") from None
    except (ValueError, http.client.InvalidURL):
        raise SourceMissingError(
            f"{shown_source}: this URL, or one that it leads to, is not valid; correct it"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ConnectionLostError(f"{shown_source}: {reason}") from None


@contextmanager
def defects(what: str) -> Iterator[None]:
    """Raises DownloadError for an error that nobody has foreseen.

    A thread that ended without an error of its download would let loaders wait for ever.
    """
    try:
        yield
    except DownloadError:
        raise
    except Exception as error:
        log(traceback.format_exc())
        raise DownloadError(f"{what}: {type(error).__name__}, a defect of the download") from error
