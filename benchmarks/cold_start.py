"""Compares a cold invocation with the start of ComfyUI that it includes.

No process runs before a measurement. Each measurement has new data folders and runs the same small
workflow (EmptyImage -> SaveImage, 64x64). The sides take turns:

- ComfyUI alone: `main.py` with the worker's flags, from the start of the process to the first
  /system_stats that answers, plus one warm run by a raw client (its second run).
- lambda_handler: a new process imports handler.app and calls the handler once. The handler starts
  the worker, which starts ComfyUI. The time ends when the response has arrived.
- runtime invoke: `lambda-comfyui invoke -e event.json`, through AWS's runtime client, until the
  response is on stdout.
- container: `lambda-comfyui serve`, which runs the extension and AWS's runtime client as in the
  image. One call is sent as soon as the port is open. The time ends with its response.

How to read it: the ratio is what this project's processes add to ComfyUI's own start. The last
lines show how long `invoke` takes until its processes have ended, and how long ComfyUI's first run
takes. Each side except ComfyUI alone includes that first run.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from statistics import median

from benchmarks.place import check_completed, event, own_environment, small_image, wait_for
from benchmarks.raw_client import RawClient
from benchmarks.report import print_table
from handler.settings import PROJECT
from runtime.worker.comfyui_arguments import HOST, arguments, child_environment

TARGET = 1.1
_INVOKE = "/2015-03-31/functions/function/invocations"
_ONE_CALL = """
import json, os, sys
from handler.app import lambda_handler
response = lambda_handler(json.loads(sys.argv[1]), None)
os.write(int(sys.argv[2]), json.dumps(response).encode())
os.close(int(sys.argv[2]))
"""


def boot_comfyui() -> tuple[float, float, float]:
    """Milliseconds of the start, of the first run and of the second run."""
    with own_environment() as settings, socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        probe.close()
        began = time.perf_counter()
        process = subprocess.Popen(
            [str(settings.comfyui_interpreter), "main.py", *arguments(settings, port)],
            cwd=settings.comfyui_code,
            env=child_environment(os.environ),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_for(lambda: _answers(port))
            booted = time.perf_counter()
            client = RawClient(f"http://{HOST}:{port}")
            times = []
            for _ in range(2):
                run_began = time.perf_counter()
                client.run(small_image())
                times.append((time.perf_counter() - run_began) * 1000)
            client.close()
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return (booted - began) * 1000, times[0], times[1]


def _answers(port: int) -> bool:
    connection = HTTPConnection(HOST, port, timeout=2)
    try:
        connection.request("GET", "/system_stats")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def call_handler() -> float:
    with own_environment():
        request = json.dumps(event(small_image()))
        reading, writing = os.pipe()
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-c", _ONE_CALL, request, str(writing)],
            cwd=PROJECT,
            pass_fds=[writing],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            response = pipe.read()
        ms = (time.perf_counter() - began) * 1000
        process.wait()
        check_completed(json.loads(response or '{"status": "", "message": "no response"}'))
    return ms


def invoke() -> tuple[float, float]:
    """Milliseconds to the response, and to the end of the command."""
    with own_environment() as settings:
        file = Path(f"{settings.worker_dir}.event.json")
        file.write_text(json.dumps(event(small_image())))
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "runtime", "invoke", "-e", str(file)],
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        lines = []
        with process.stdout as answer:
            for line in answer:
                lines.append(line)
                if line == "}\n":
                    break
            ms = (time.perf_counter() - began) * 1000
            process.wait()
        end_ms = (time.perf_counter() - began) * 1000
        check_completed(json.loads("".join(lines) or '{"status": "", "message": "no response"}'))
    return ms, end_ms


def container() -> float:
    """Milliseconds from the start of a host with its extension to its first response."""
    with own_environment(), socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        probe.close()
        request = json.dumps(event(small_image()))
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "runtime", "serve", "--port", str(port)],
            cwd=PROJECT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(lambda: _listens(port))
            connection = HTTPConnection(HOST, port, timeout=60)
            connection.request("POST", _INVOKE, request)
            response = json.loads(connection.getresponse().read())
            ms = (time.perf_counter() - began) * 1000
            connection.close()
        finally:
            process.terminate()
            process.wait()
        check_completed(response)
    return ms


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cold_start")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    rounds = parser.parse_args().rounds
    boot_comfyui()  # compiles ComfyUI's files and reads them into the page cache
    timed = [(boot_comfyui(), call_handler(), invoke(), container()) for _ in range(rounds)]
    sides = {
        "ComfyUI alone": [boot + second for (boot, _, second), _, _, _ in timed],
        "lambda_handler": [handler for _, handler, _, _ in timed],
        "runtime invoke": [answer for _, _, (answer, _), _ in timed],
        "container": [answer for _, _, _, answer in timed],
    }
    print_table(sides, dict.fromkeys(list(sides)[1:], TARGET))
    print(f"runtime invoke until it has ended, p50: {median(i[1] for _, _, i, _ in timed):.0f} ms")
    print(f"ComfyUI's first run, p50: {median(b[1] for b, _, _, _ in timed):.0f} ms")


if __name__ == "__main__":
    main()
