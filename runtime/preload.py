"""Run by ComfyUI's own Python: imports what takes long, waits for a word, and becomes ComfyUI.

The word is one line on stdin: the arguments of main.py as a JSON list. Nothing of ComfyUI itself is
imported beforehand, so this does not depend on its version, and CUDA is never touched: a sleeping
process holds no memory of the GPU.
"""

import contextlib
import importlib
import json
import os
import runpy
import sys

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
    for name in HEAVY:
        # What is not installed here, ComfyUI does not need, or will say so itself.
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    line = sys.stdin.readline()
    if not line:
        # The worker is gone, or went to a deeper sleep.
        return
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = ["main.py", *json.loads(line)]
    sys.path[0] = os.getcwd()
    runpy.run_path("main.py", run_name="__main__")


if __name__ == "__main__":
    main()
