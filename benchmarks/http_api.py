"""Measures what the HTTP API of a host adds to ComfyUI, and how its answers grow with its jobs.

1. EmptyImage -> SaveImage, warm, in turn on the same ComfyUI: a raw client on http.client (the
   baseline of the target), and `POST /generate/sync` of `serve` over a kept connection.
2. p95 of `GET /jobs` and `GET /result/{id}` with many jobs on record, against that of
   `GET /health`, over kept connections.

Each measured run follows an unmeasured run of the same side, as in benchmarks/overhead.py.
"""

import argparse
import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from benchmarks.overhead import empty, run_raw
from benchmarks.place import event, own_environment, running_comfyui, small_image, wait_for
from benchmarks.raw_client import RawClient
from benchmarks.report import print_table
from handler.jobs.record import JobRecord, Lease, Status, record_id
from handler.jobs.sqlite import SqliteStore
from handler.settings import PROJECT

TARGET = 2.0
GROWTH_TARGET = 3.0
WARM_UP_ROUNDS = 10
_ADDRESS = re.compile(r"HTTP API on http://([\d.]+):(\d+)")


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[http.client.HTTPConnection]:
    """A connection to the API of a `serve`, which uses the worker that is there."""
    log = folder / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "runtime", "serve", "--port", "0", "--api-port", "0"],
            cwd=PROJECT,
            stdout=output,
            stderr=output,
        )
    try:
        wait_for(
            lambda: "host: ready" in log.read_text() and bool(_ADDRESS.search(log.read_text()))
        )
        found = _ADDRESS.search(log.read_text())
        assert found
        connection = http.client.HTTPConnection(found[1], int(found[2]), timeout=60)
        yield connection
        connection.close()
    finally:
        process.terminate()
        process.wait(60)


def call(connection: http.client.HTTPConnection, method: str, path: str, body: str = "") -> bytes:
    connection.request(method, path, body or None, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{method} {path}: HTTP {answer.status}")
    return content


def run_api(connection: http.client.HTTPConnection, output: Path) -> float:
    call(connection, "POST", "/generate/sync", json.dumps(event(small_image())))
    request = event(small_image())
    began = time.perf_counter()
    response = json.loads(call(connection, "POST", "/generate/sync", json.dumps(request)))
    ms = (time.perf_counter() - began) * 1000
    assert response["status"] == "completed"
    empty(output)
    return ms


def put_jobs(path: Path, jobs: int, response: dict[str, object]) -> None:
    """Put finished jobs with this response on record."""
    store = SqliteStore(path)
    now = time.time()
    for number in range(jobs):
        record = JobRecord(
            id=record_id(f"job-{number}"),
            status=Status.COMPLETED,
            lease=Lease("", 0.0),
            retained_until=int(now) + 86_400,
            request="request",
            source="http",
            created=now - jobs + number,
            started=now - jobs + number,
            finished=now - jobs + number + 1,
            response={**response, "id": f"job-{number}"},
        )
        store.change(record.id, lambda _, record=record: record, now)  # type: ignore[misc]
    store.close()


def p95(values: list[float]) -> float:
    return sorted(values)[-(-95 * len(values) // 100) - 1]


def measure_growth(connection: http.client.HTTPConnection, jobs: int) -> dict[str, float]:
    times: dict[str, list[float]] = defaultdict(list)
    for number in range(300):
        for name, path in (
            ("GET /health", "/health"),
            ("GET /jobs", "/jobs"),
            ("GET /result/{id}", f"/result/job-{number * 37 % jobs}"),
        ):
            began = time.perf_counter()
            call(connection, "GET", path)
            times[name].append((time.perf_counter() - began) * 1000)
    return {name: p95(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.http_api")
    parser.add_argument("--rounds", type=int, default=60, help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=10_000, help="default: %(default)s")
    arguments = parser.parse_args()
    with own_environment() as settings, running_comfyui(settings) as comfyui:
        output = comfyui.folders["output"]
        database = settings.worker_dir / "jobs.sqlite"
        os.environ["JOBS_DB"] = str(database)
        with serving(settings.worker_dir.parent) as connection:
            raw = RawClient(comfyui.base_url)
            timed = [
                (run_raw(raw, output), run_api(connection, output))
                for _ in range(WARM_UP_ROUNDS + arguments.rounds)
            ][WARM_UP_ROUNDS:]
            raw.close()
            raw_ms, api_ms = zip(*timed, strict=True)
            sides = {"raw, http.client": list(raw_ms), "POST /generate/sync": list(api_ms)}
            print_table(sides, {"POST /generate/sync": TARGET})
            answer = call(connection, "POST", "/generate/sync", json.dumps(event(small_image())))
            response = json.loads(answer)
            put_jobs(database, arguments.jobs, response)
            growth = measure_growth(connection, arguments.jobs)
    base = growth["GET /health"]
    print(f"\nwith {arguments.jobs} jobs on record:")
    for name, ms in growth.items():
        verdict = (
            ""
            if name == "GET /health"
            else (f"  <= {GROWTH_TARGET:g}: {'met' if ms / base <= GROWTH_TARGET else 'MISSED'}")
        )
        print(f"{name:18} p95 {ms:6.1f} ms  ratio {ms / base:.2f}{verdict}")


if __name__ == "__main__":
    main()
