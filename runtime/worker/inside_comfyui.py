"""Run by ComfyUI's own Python: `launch.py main.py ARGUMENTS...` becomes ComfyUI at once.

`launch.py --prepare` imports what takes long, and waits for one line on stdin: main.py and its
arguments as a JSON list. Nothing of ComfyUI itself is imported beforehand, so this does not depend
on its version, and CUDA is never touched: a sleeping process holds no memory of the GPU.

What becomes ComfyUI boots without the garbage collector, and ends when its queue can run nothing
any more: docs/decisions/0006-prepared-python.md and 0004-unresponsive-job.md say why.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import socket
import sys
import threading
import time

# The third-party modules that ComfyUI's start spends its time in, the costliest first.
HEAVY = (
    "torch",
    "torch._dynamo",
    "torchvision",
    "transformers",
    "transformers.models.clip.tokenization_clip",
    "aiohttp.web",
    "scipy.stats",
    "av",
    "sqlalchemy",
    "sqlalchemy.orm",
    "alembic.command",
    "kornia",
    "spandrel",
    "torchsde",
    "einops",
    "safetensors.torch",
    "PIL.Image",
    "numpy",
    "tqdm.auto",
    "psutil",
    "yaml",
    "pydantic",
)


# What `threading` calls the thread that runs the queue, after its function in ComfyUI's main.py.
EXECUTOR = "(prompt_worker)"
plain_start = threading.Thread.start


def main() -> None:
    # A million objects are made that all stay: to look for garbage among them is a fifth of a boot.
    gc.disable()
    command = sys.argv[1:]
    if command == ["--prepare"]:
        for name in HEAVY:
            # What is not installed here, ComfyUI does not need, or will say so itself.
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        line = sys.stdin.readline()
        if not line:
            # The worker is gone, or went to a deeper sleep.
            return
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        command = json.loads(line)
    threading.Thread.start = frozen_start  # type: ignore[method-assign,assignment]
    threading.excepthook = end_with_the_executor
    threading.Thread(target=collect_when_serving, args=(command,), daemon=True).start()
    sys.argv = command
    sys.path[0] = os.getcwd()
    runpy.run_path(command[0], run_name="__main__")


def frozen_start(thread: threading.Thread) -> None:
    """Take what the boot has made out of the collector's sight as the executor's thread starts.

    ComfyUI collects after a job that follows a pause, before its answer can be read: 0.3 s over a
    million objects that never become garbage. Not later: the executor makes caches that it throws
    away to free memory, and what is out of sight would keep the models in them for ever.
    """
    if EXECUTOR in thread.name:
        gc.freeze()
    plain_start(thread)


def collect_when_serving(command: list[str]) -> None:
    """Let the garbage collector begin once the port is open."""
    address = ("127.0.0.1", int(command[command.index("--port") + 1]))
    while True:
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=1):
            gc.enable()
            return
        time.sleep(0.01)


def end_with_the_executor(raised: threading.ExceptHookArgs) -> None:
    """End the process when the thread that runs the queue has ended: it would accept jobs for ever.

    ComfyUI catches what is an Exception; a node that calls `sys.exit` raises something else.
    """
    threading.__excepthook__(raised)
    if raised.thread and EXECUTOR in raised.thread.name:
        # SystemExit is no failure to Python, so nothing was printed for it.
        print(f"the thread that runs the queue has ended: {raised.exc_type.__name__}", flush=True)
        os._exit(1)


if __name__ == "__main__":
    main()
