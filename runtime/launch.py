"""Run by ComfyUI's own Python: `launch.py main.py ARGUMENTS...` becomes ComfyUI at once.

`launch.py --prepare` imports what takes long, and waits for one line on stdin: main.py and its
arguments as a JSON list. Nothing of ComfyUI itself is imported beforehand, so this does not depend
on its version, and CUDA is never touched: a sleeping process holds no memory of the GPU.
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


def main() -> None:
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
    threading.Thread(target=freeze_when_serving, args=(command,), daemon=True).start()
    sys.argv = command
    sys.path[0] = os.getcwd()
    runpy.run_path(command[0], run_name="__main__")


def freeze_when_serving(command: list[str]) -> None:
    """Take what the boot has made out of the garbage collector's sight, once the port is open.

    ComfyUI collects after a job that follows a pause, before its answer can be read: 0.3 s over a
    million objects that never become garbage.
    """
    address = ("127.0.0.1", int(command[command.index("--port") + 1]))
    while True:
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=1):
            gc.freeze()
            return
        time.sleep(0.01)


if __name__ == "__main__":
    main()
