"""How many gigabytes a CPU second downloads: our ranged reads against boto3's transfer.

    python -m benchmarks.weights_download [--gigabytes 1] [--rounds 3]

A server on the loopback interface in a process of its own answers ranges of one file, by sendfile.
Each download runs in a fresh process and writes to memory (/dev/shm), so neither the disk nor the
network counts. What counts is the CPU time of that process, without its imports. The sides take
turns, and the median of the rounds is compared.
"""

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SIDES = (
    "boto3",
    "boto3, 32 threads, 16 MB",
    "boto3, then SHA-256",
    "ours",
    "ours, with SHA-256",
)
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(_measure(args.side, args.url, args.into)))
        return 0
    results: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / "weights" / "model.safetensors"
        path.parent.mkdir()
        _write(path, int(args.gigabytes * 1e9))
        with _serving(path) as url:
            for _ in range(args.rounds):
                for side in SIDES:
                    results[side].append(_run(side, url, Path(folder)))
    base = statistics.median(cpu for cpu, _ in results["boto3"])
    print(f"{'':28}GB per CPU second   of boto3   MB/s")
    for side, rounds in results.items():
        cpu = statistics.median(cpu for cpu, _ in rounds)
        rate = statistics.median(rate for _, rate in rounds)
        print(f"{side:28}{cpu:17.2f} {cpu / base:10.2f} {rate:6.0f}")
    return 0


def _run(side: str, url: str, folder: Path) -> tuple[float, float]:
    """GB per CPU second and MB per second of one download."""
    line = [sys.executable, "-m", "benchmarks.weights_download", "--side", side]
    into = folder / "into"
    done = subprocess.run(
        [*line, "--url", url, "--into", str(into)], stdout=subprocess.PIPE, text=True, check=True
    )
    cpu_s, seconds, size = json.loads(done.stdout)
    (into / "model.safetensors").unlink()
    return size / 1e9 / cpu_s, size / 1e6 / seconds


def _measure(side: str, url: str, into: Path) -> tuple[float, float, int]:
    into.mkdir(exist_ok=True)
    target = into / "model.safetensors"
    download = _boto3(side, url, target) if side.startswith("boto3") else _ours(side, url, target)
    before, began = _cpu_s(), time.monotonic()
    download()
    return _cpu_s() - before, time.monotonic() - began, target.stat().st_size


def _boto3(side: str, url: str, target: Path) -> Callable[[], None]:
    import boto3  # noqa: PLC0415
    from boto3.s3.transfer import TransferConfig  # noqa: PLC0415
    from botocore import UNSIGNED  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415

    config = Config(
        signature_version=UNSIGNED, s3={"addressing_style": "path"}, max_pool_connections=32
    )
    s3 = boto3.client("s3", endpoint_url=url, region_name="us-east-1", config=config)
    transfer = TransferConfig()
    if "32" in side:
        transfer = TransferConfig(max_concurrency=32, multipart_chunksize=16 * 1024**2)

    def download() -> None:
        s3.download_file("weights", "model.safetensors", str(target), Config=transfer)
        if "SHA" in side:
            with target.open("rb") as file:
                hashlib.file_digest(file, "sha256")

    return download


def _ours(side: str, url: str, target: Path) -> Callable[[], None]:
    from handler.settings import Settings  # noqa: PLC0415
    from runtime.models.download import Downloader  # noqa: PLC0415
    from runtime.models.manifest import ModelFile  # noqa: PLC0415

    source = f"{url}/weights/model.safetensors"
    sha256 = None
    if "SHA" in side:
        with (target.parent.parent / "weights" / "model.safetensors").open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    model = ModelFile(name="model.safetensors", folder=".", sources=(source,), sha256=sha256)

    def download() -> None:
        with Downloader(Settings()) as downloader:
            downloader.add(model, target)
            downloader.wait([target])
            assert downloader.state(target).error is None

    return download


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _write(path: Path, size: int) -> None:
    piece = os.urandom(16 * 1024**2)
    with path.open("wb") as file:
        while file.tell() < size:
            file.write(piece[: size - file.tell()])


@contextlib.contextmanager
def _serving(path: Path) -> Iterator[str]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_serve, args=(path, theirs))
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()
        process.join()


def _serve(path: Path, pipe: "multiprocessing.connection.Connection") -> None:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._head(200, path.stat().st_size)

        def do_GET(self) -> None:
            size = path.stat().st_size
            found = _RANGE.fullmatch(self.headers.get("Range", ""))
            start = int(found[1]) if found else 0
            last = int(found[2]) if found and found[2] else size - 1
            self._head(206, last + 1 - start, f"bytes {start}-{last}/{size}")
            self.wfile.flush()
            with path.open("rb") as file:
                while start <= last:
                    count = min(last + 1 - start, 2**20)
                    start += os.sendfile(self.connection.fileno(), file.fileno(), start, count)

        def _head(self, status: int, length: int, content_range: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.send_header("ETag", '"1"')
            if content_range:
                self.send_header("Content-Range", content_range)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that has gone is no error."""

        request_queue_size = 64
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    pipe.send(server.server_port)
    server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
