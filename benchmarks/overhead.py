"""Measures what the handler adds to ComfyUI when everything is warm.

All sides run the same workflow without models (EmptyImage -> SaveImage, 64x64, a new colour each
time) in turn, in this process, on the same ComfyUI:

- raw, http.client: POST /prompt, WebSocket messages until the prompt has ended, GET /history, with
  kept connections and the standard library's HTTP. This is the baseline of the target.
- raw, requests: the same with a requests.Session, the client that most programs use.
- lambda_handler: the whole handler without S3 and webhook: validation, request to the worker, run,
  links to the files in the job's folder, response, log (to /dev/null).

Two measures keep the sides from disturbing each other:

- Each measured run follows an unmeasured run of the same side. ComfyUI sends messages about the
  queue to every client, so the second client would otherwise read messages of the other's run.
- ComfyUI's output folder is emptied each time. SaveImage lists it, so ComfyUI becomes slower with
  every file in it, which would reduce the ratio.

How to read it: the ratio is the worst case, because the workflow itself takes only a few
milliseconds. The difference of the p50s is what the handler adds to any job, however long.
"""

import argparse
import os
import shutil
import time
from pathlib import Path
from statistics import median

from benchmarks.place import (
    check_completed,
    event,
    own_environment,
    running_comfyui,
    small_image,
)
from benchmarks.raw_client import RawClient, RawRequestsClient
from benchmarks.report import print_table
from handler.app import lambda_handler

TARGET = 1.5
WARM_UP_ROUNDS = 10


def run_raw(client: RawClient, output: Path) -> float:
    client.run(small_image())
    workflow = small_image()
    began = time.perf_counter()
    client.run(workflow)
    ms = (time.perf_counter() - began) * 1000
    empty(output)
    return ms


def run_handler(output: Path) -> float:
    lambda_handler(event(small_image()), None)
    request = event(small_image())
    began = time.perf_counter()
    response = lambda_handler(request, None)
    ms = (time.perf_counter() - began) * 1000
    check_completed(response)
    empty(output)
    return ms


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead")
    parser.add_argument("--rounds", type=int, default=60, help="default: %(default)s")
    rounds = parser.parse_args().rounds
    # The logger keeps sys.stdout, so the file descriptor is redirected instead.
    terminal = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with own_environment() as settings, running_comfyui(settings) as comfyui:
        baseline, usual = RawClient(comfyui.base_url), RawRequestsClient(comfyui.base_url)
        output = comfyui.folders["output"]
        timed = [
            (run_raw(baseline, output), run_raw(usual, output), run_handler(output))
            for _ in range(WARM_UP_ROUNDS + rounds)
        ][WARM_UP_ROUNDS:]
        baseline.close()
        usual.close()
    sides = zip(
        ("raw, http.client", "raw, requests", "lambda_handler"),
        zip(*timed, strict=True),
        strict=True,
    )
    print_table({name: list(ms) for name, ms in sides}, {"lambda_handler": TARGET}, terminal)
    for position, name in enumerate(("http.client", "requests")):
        added = median(each[2] - each[position] for each in timed)
        ratio = median(each[2] for each in timed) / median(each[position] for each in timed)
        line = f"lambda_handler against {name}: {ratio:.2f} times, {added:.1f} ms more"
        print(line, file=terminal)


if __name__ == "__main__":
    main()
