"""The code that runs inside ComfyUI's process, before and beside ComfyUI's own: it becomes ComfyUI.

It neither starts the process (runtime/worker/comfyui_process.py does) nor chooses the arguments
(runtime/worker/comfyui_arguments.py does). It is run by ComfyUI's Python, so it imports nothing of
this project:

- `inside_comfyui.py main.py ARGUMENTS...` becomes ComfyUI at once.
- `inside_comfyui.py --self-test main.py ARGUMENTS...` does the same, but ends before ComfyUI serves
  when the self-test of runtime/worker/inside_executor.py finds a problem.
- `inside_comfyui.py --prewarm main.py ARGUMENTS...` imports the modules that take long, and waits
  for one line on stdin: main.py and its arguments as a JSON list, the same but for the port. Then
  it becomes ComfyUI. It imports nothing of ComfyUI beforehand, so it does not depend on ComfyUI's
  version, and it never touches CUDA, so it holds no memory of the GPU.

Both ways have the same allocator of GPU memory: runtime/worker/inside_torch.py.

What becomes ComfyUI boots without the garbage collector, and ends when its queue can run nothing
any more: docs/decisions/0006-prewarmed-python.md and 0004-unresponsive-job.md say why.
"""

import contextlib
import functools
import gc
import importlib
import importlib.util
import json
import logging
import os
import runpy
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

# The third-party modules that ComfyUI's start spends its time in beside torch, the costliest first.
HEAVY = (
    "torch._dynamo",
    "torchvision",
    "torchaudio",
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
PREWARM = "--prewarm"
SELF_TEST = "--self-test"
# main.py sets them, but a prewarmed process imports huggingface_hub, which reads them, before that.
NO_TELEMETRY = {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
# ComfyUI's warning about what `import_torch` has taken care of.
TORCH_IS_LOADED = "Torch already imported"
plain_start = threading.Thread.start


def main() -> None:
    # A boot makes a million objects that all stay. Looking for garbage among them is a fifth of it.
    gc.disable()
    # Not our own folder: what is imported here must be what ComfyUI would import.
    sys.path[0] = os.getcwd()
    before_torch = load("inside_torch")
    command = sys.argv[1:]
    if command[0] == PREWARM:
        command = command[1:]
        allocator = before_torch.allocator_for(command)
        os.environ |= NO_TELEMETRY
        before_torch.import_torch([*command, *allocator])
        logging.root.addFilter(lambda record: TORCH_IS_LOADED not in str(record.msg))
        for name in HEAVY:
            # A module that is missing here is one that ComfyUI does not need, or it says so.
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        line = sys.stdin.readline()
        if not line:
            # The worker has ended.
            return
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        command = json.loads(line)
    else:
        allocator = before_torch.allocator_for(command)
    has_self_test = command[0] == SELF_TEST
    if has_self_test:
        command = command[1:]
    memory = load("memory", "../process")
    available_bytes = functools.partial(memory.available_bytes, with_used_cache=True)
    models = load("inside_models").of_environment(available_bytes)

    def start(thread: threading.Thread) -> None:
        frozen_start(thread, command, models, has_self_test=has_self_test)

    load("inside_gate").install(models and models.make_room_to_load)
    threading.Thread.start = start  # type: ignore[method-assign,assignment]
    threading.excepthook = end_with_the_executor
    threading.Thread(target=collect_when_serving, args=(command,), daemon=True).start()
    load("inside_custom_nodes").watch(load("inside_compiler").report)
    sys.argv = [command[0], *allocator, *command[1:]]
    try:
        runpy.run_path(command[0], run_name="__main__")
    except Exception:
        # The device may be why.
        load("gpu_check").report(command)
        raise


def frozen_start(
    thread: threading.Thread, command: list[str], models: Any, *, has_self_test: bool
) -> None:
    """Start a thread; when it is the executor's, extend the executor first.

    The objects of the boot are hidden from the garbage collector then.

    ComfyUI collects garbage after a job that follows a pause, before its answer can be read: 0.3 s
    over a million objects that never become garbage. It must not be done later: the executor makes
    caches that it discards to free memory, and hidden caches would keep their models for ever.
    """
    if EXECUTOR in thread.name:
        load("gpu_check").report(command)
        extend_the_executor(has_self_test=has_self_test)
        if models is not None:
            # A ComfyUI that has no such names keeps none.
            with contextlib.suppress(AttributeError, KeyError):
                models.extend(sys.modules["execution"], sys.modules["nodes"])
                plain_start(threading.Thread(target=models.watch, name="kept models", daemon=True))
        gc.freeze()
    plain_start(thread)


def extend_the_executor(*, has_self_test: bool) -> None:
    """Add what inside_executor.py has; with `has_self_test`, end the process if the test fails."""
    extension = load("inside_executor")
    # Without it, the handler has less to judge a failure by.
    with contextlib.suppress(AttributeError, KeyError):
        extension.extend(sys.modules["execution"].PromptExecutor)
    if has_self_test and (problem := extension.find_problem()):
        print(f"the self-test has found a problem: {problem}", flush=True)
        os._exit(1)


def load(name: str, folder: str = ".") -> Any:
    """The module in the file `name`.py beside this one, or in `folder`, as seen from here.

    Its name stays free for custom nodes.
    """
    file = Path(__file__).parent / folder / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def collect_when_serving(command: list[str]) -> None:
    """Turn the garbage collector on once the port is open."""
    address = ("127.0.0.1", int(command[command.index("--port") + 1]))
    while True:
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=1):
            gc.enable()
            return
        time.sleep(0.01)


def end_with_the_executor(raised: threading.ExceptHookArgs) -> None:
    """End the process when the thread that runs the queue has ended: no job would ever run.

    ComfyUI catches every Exception of a node, but not the SystemExit of a node's `sys.exit`.
    """
    threading.__excepthook__(raised)
    if raised.thread and EXECUTOR in raised.thread.name:
        # Python prints nothing for a SystemExit.
        print(f"the thread that runs the queue has ended: {raised.exc_type.__name__}", flush=True)
        os._exit(1)


if __name__ == "__main__":
    main()
