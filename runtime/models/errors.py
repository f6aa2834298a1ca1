"""Why a model file could not be downloaded. Each reason has its own exit status.

docs/models.md has the table of them. A message never contains a query, a password or a token.
"""

from typing import ClassVar

from runtime.errors import LambdaComfyUIError, UsageError


class ManifestError(UsageError):
    """A manifest cannot be read; the message names the file, the field and what is expected."""


class DownloadError(LambdaComfyUIError):
    """A file cannot be downloaded; the message names it, its source, the reason and the fix."""

    may_pass: ClassVar[bool] = False
    """Whether the same request may succeed a little later."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DiskFullError(DownloadError):
    """There is not enough free space for the files."""

    exit_status = 10


class WrongHashError(DownloadError):
    """The bytes of a source do not have the SHA-256 of the manifest."""

    exit_status = 11


class AccessDeniedError(DownloadError):
    """A source refuses the request: it wants credentials, or others than it got."""

    exit_status = 12


class SourceMissingError(DownloadError):
    """There is no such file at a source, or no longer."""

    exit_status = 13


class ConnectionLostError(DownloadError):
    """No connection can be made, or it breaks again and again without one new byte."""

    exit_status = 14
    may_pass = True


class TooSlowError(DownloadError):
    """A source sends less than the slowest line that is worth waiting for."""

    exit_status = 15


class ServerFailedError(DownloadError):
    """A source answers that it has failed or is too busy, each time it is asked."""

    exit_status = 16
    may_pass = True


class WrongSizeError(DownloadError):
    """A source has a file of another size than the manifest."""

    exit_status = 17


class SourceChangedError(DownloadError):
    """The file of a source was replaced while it was downloaded."""

    exit_status = 18


class TargetError(DownloadError):
    """The folder of a model cannot be written."""

    exit_status = 19


class DamagedFileError(DownloadError):
    """A file that is in place has other bytes than its manifest says, or cannot be read."""

    exit_status = 21
