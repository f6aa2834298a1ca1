"""What the worker and its commands log: plain lines on stderr, and in the worker's log file."""

import contextlib
import logging
import sys
import traceback
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import TracebackType

# Of the log file; as much of the lines before is kept in a second one.
_MAX_BYTES = 1_000_000


def log(line: str) -> None:
    """Write one plain line to stderr and flush it: the platform's log, or the terminal.

    A stderr that is closed or full is ignored.
    """
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)
    _write_to_file(line)


def log_to(path: Path) -> None:
    """From now on append each line to the file, too, and the error that ends the process.

    Raises OSError when the file cannot be opened.
    """
    _files[:] = [_LogFile(path, maxBytes=_MAX_BYTES, backupCount=1, encoding="utf-8")]
    sys.excepthook = _log_error


class _LogFile(RotatingFileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk must not stop the worker; the line is on stderr."""


_files: list[_LogFile] = []


def _write_to_file(line: str) -> None:
    for file in _files:
        file.handle(logging.makeLogRecord({"msg": line}))


def _log_error(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    log("".join(traceback.format_exception(kind, error, trace)).rstrip())
