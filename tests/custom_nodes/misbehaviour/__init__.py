"""Custom nodes for the tests, loaded by the real ComfyUI: each shows one misbehaviour or output."""

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from typing import Any, ClassVar

import comfy.model_management
import comfy.utils
import torch
from huggingface_hub import constants  # type: ignore[import-not-found]


class _Output:
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ()
    FUNCTION = "run"
    OUTPUT_NODE = True
    CATEGORY = "tests"
    inputs: ClassVar[dict[str, Any]] = {}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": cls.inputs}

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:
        return time.time()


class TestRaise(_Output):
    inputs: ClassVar = {"message": ("STRING", {"default": "broken"})}

    def run(self, message: str) -> None:
        raise ValueError(message)


class TestOutOfMemory(_Output):
    def run(self) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


class TestAllocate(_Output):
    """Asks the real allocator for more than any machine has."""

    def run(self) -> None:
        torch.empty(2**50, dtype=torch.uint8)


class TestWrapped(_Output):
    """Wraps an exception in one of its own, as many node packs do."""

    inputs: ClassVar = {"what": (["out of memory", "device fault", "value"],)}

    def run(self, what: str) -> None:
        try:
            match what:
                case "out of memory":
                    raise torch.OutOfMemoryError("Allocation on device")
                case "device fault":
                    raise RuntimeError("CUDA error: an illegal memory access was encountered")
                case _:
                    raise ValueError("CUDA error: out of memory, says the prompt")
        except Exception as error:
            raise TypeError("the sampler failed") from error


class TestDevice(_Output):
    """A GPU with a sticky fault, as long as the file exists: CUDA's words come back from each call.

    If the file holds "until restart", another process has a sound GPU. If it holds the name of a
    folder, only the worker of that folder has the fault.
    """

    inputs: ClassVar = {"file": ("STRING", {"default": ""}), "number": ("INT", {"default": 0})}
    broken: ClassVar = False

    def run(self, file: str, number: int) -> dict[str, Any]:
        with contextlib.suppress(FileNotFoundError), open(file) as fault:
            content = fault.read()
            TestDevice.broken |= not content.startswith("/") or content == os.environ["WORKER_DIR"]
            if content == "until restart":
                os.remove(file)
        if TestDevice.broken:
            raise RuntimeError(
                "CUDA error: an illegal memory access was encountered\n"
                "CUDA kernel errors might be asynchronously reported at some other API call"
            )
        return {"ui": {"text": ["computed"]}}


class TestKill(_Output):
    def run(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class TestExit(_Output):
    """What some scripts do that were made into nodes; it ends the thread that runs the queue."""

    def run(self) -> None:
        sys.exit("bye")


class TestSleep(_Output):
    """Sleeps; notices an interrupt as a sampler does, unless it is told to be deaf."""

    inputs: ClassVar = {
        "seconds": ("FLOAT", {"default": 1.0, "max": 1000.0}),
        "deaf": ("BOOLEAN", {"default": False}),
    }

    def run(self, seconds: float, deaf: bool) -> dict[str, Any]:
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up:
            time.sleep(0.02)
            if not deaf:
                comfy.model_management.throw_exception_if_processing_interrupted()
        return {"ui": {"text": ["slept"]}}


class TestWait(_Output):
    """Runs until a file exists: a test makes it when it has seen what it wants to see."""

    inputs: ClassVar = {"file": ("STRING", {"default": ""})}

    def run(self, file: str) -> dict[str, Any]:
        while not os.path.exists(file):
            time.sleep(0.02)
            comfy.model_management.throw_exception_if_processing_interrupted()
        return {"ui": {"text": ["waited"]}}


class TestNewName(_Output):
    """Writes a result under another name each time, before the node that gets its value runs."""

    RETURN_TYPES: ClassVar = ("STRING",)
    inputs: ClassVar = {"value": ("STRING", {})}

    def run(self, value: str) -> dict[str, Any]:
        name = f"{time.time_ns()}.txt"
        with open(_output_path(name), "w") as file:
            file.write(name)
        return {"ui": {"things": [{"filename": name}]}, "result": (value,)}


class TestHold(_Output):
    """Keeps the interpreter lock, as some C extensions do: no other thread runs, no server answers.

    Not before its "executing" message is on its way.
    """

    inputs: ClassVar = {"seconds": ("INT", {"default": 1, "max": 1000})}

    def run(self, seconds: int) -> dict[str, Any]:
        time.sleep(0.5)
        ctypes.PyDLL(None).sleep(seconds)
        return {"ui": {"text": ["held"]}}


class TestCycle(_Output):
    """Expands into two nodes that wait for each other: validation cannot see that cycle."""

    def run(self) -> dict[str, Any]:
        from comfy_execution.graph_utils import (  # type: ignore[import-not-found]  # noqa: PLC0415
            GraphBuilder,
        )

        graph = GraphBuilder()
        first, second = graph.node("ImageInvert"), graph.node("ImageInvert")
        first.set_input("image", second.out(0))
        second.set_input("image", first.out(0))
        # "result" makes ComfyUI run the expansion; the node itself has no output socket.
        graph.node("PreviewImage", images=first.out(0))
        return {"result": (), "expand": graph.finalize()}


class TestSteps:
    """Reports its steps as a sampler does, in several passes if it is told to."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "steps": ("INT", {"default": 4}),
                "seconds": ("FLOAT", {"default": 0.2}),
                "passes": ("INT", {"default": 1}),
                "seed": ("INT", {"default": 0}),
            },
            "optional": {"after": ("STRING", {"forceInput": True})},
        }

    def run(
        self, steps: int, seconds: float, passes: int, seed: int, after: str = ""
    ) -> tuple[str]:
        for _ in range(passes):
            bar = comfy.utils.ProgressBar(steps)
            for _ in range(steps):
                time.sleep(seconds / steps / passes)
                bar.update(1)
        return (f"{after} {seed}",)


class TestExpand:
    """Expands into two nodes that report their steps, and has the result of the second one."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"seconds": ("FLOAT", {"default": 0.2}), "seed": ("INT", {})}}

    def run(self, seconds: float, seed: int) -> dict[str, Any]:
        from comfy_execution.graph_utils import GraphBuilder  # noqa: PLC0415

        graph = GraphBuilder()
        half: dict[str, Any] = {"steps": 5, "seconds": seconds / 2, "passes": 1}
        first = graph.node("TestSteps", seed=seed, **half)
        second = graph.node("TestSteps", seed=seed, after=first.out(0), **half)
        return {"result": (second.out(0),), "expand": graph.finalize()}


class TestNoStatus(_Output):
    """Takes the status out of its own history entry, as a patched queue may."""

    def run(self) -> dict[str, Any]:
        from server import PromptServer  # type: ignore[import-not-found]  # noqa: PLC0415

        queue = PromptServer.instance.prompt_queue
        task_done = queue.task_done

        def task_done_without_status(item: int, result: Any, status: Any, **more: Any) -> None:
            queue.task_done = task_done
            task_done(item, result, None, **more)

        queue.task_done = task_done_without_status
        return {"ui": {"text": ["ran"]}}


class TestBroadcast(_Output):
    """Sends messages of its own to everybody, in shapes that ComfyUI itself never uses."""

    def run(self) -> dict[str, Any]:
        from server import PromptServer  # noqa: PLC0415

        for data in ("text", ["list"], 5, None):
            PromptServer.instance.send_sync("my.event", data)
        return {"ui": {"text": ["sent"]}}


class TestOddProgress(_Output):
    def run(self) -> dict[str, Any]:
        bar = comfy.utils.ProgressBar(10)
        for value in (float("nan"), float("inf"), -3, 20, 10):
            bar.update_absolute(value)
        return {"ui": {"text": ["done"]}}


class TestManyProgress(_Output):
    inputs: ClassVar = {"reports": ("INT", {"default": 1, "max": 1_000_000})}

    def run(self, reports: int) -> dict[str, Any]:
        bar = comfy.utils.ProgressBar(reports)
        for value in range(reports):
            bar.update_absolute(value)
        return {"ui": {"text": ["done"]}}


class TestUi(_Output):
    """Gives whatever JSON it is told to as its result."""

    inputs: ClassVar = {"ui": ("STRING", {"default": "{}"})}

    def run(self, ui: str) -> dict[str, Any]:
        return {"ui": json.loads(ui)}


class TestManyChoices(_Output):
    """A loader with more choices than ComfyUI lists when it refuses one."""

    inputs: ClassVar = {
        "vae_name": ([f"wan/model_{n:02}.safetensors" for n in range(30)],),
        "model": ([],),
    }

    def run(self, vae_name: str, model: str) -> dict[str, Any]:
        return {"ui": {"text": [vae_name, model]}}


class TestFixedName(_Output):
    """Writes the same file in every run, in place, as nodes with an `overwrite` switch do."""

    inputs: ClassVar = {"text": ("STRING", {"default": ""}), "name": ("STRING", {"default": ""})}

    def run(self, text: str, name: str) -> dict[str, Any]:
        import folder_paths  # type: ignore[import-not-found]  # noqa: PLC0415

        with open(os.path.join(folder_paths.get_output_directory(), name), "w") as file:
            file.write(text)
        return {"ui": {"images": [{"filename": name, "subfolder": "", "type": "output"}]}}


class TestConditioning:
    """What a text encoder of Wan gives, without its 50 seconds on a CPU."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def run(self) -> tuple[list[Any]]:
        return ([[torch.zeros(1, 512, 4096), {}]],)


class TestOutputs(_Output):
    """Every shape that node packs give their results."""

    def run(self) -> dict[str, Any]:
        import folder_paths  # noqa: PLC0415

        root = folder_paths.get_output_directory()
        for path in ("one/same.bin", "two/same.bin", "three/path.glb", "sound.flac"):
            place = os.path.join(root, path)
            os.makedirs(os.path.dirname(place), exist_ok=True)
            with open(place, "w") as file:
                file.write(path)

        def item(name: str, subfolder: str) -> dict[str, str]:
            return {"filename": name, "subfolder": subfolder, "type": "output"}

        return {
            "ui": {
                "gifs": [item("same.bin", "one") | {"format": "video/h264-mp4"}],
                "3d": [item("same.bin", "two")],
                "audio": [item("sound.flac", "")],
                "result": ["three/path.glb", None],
                "text": ["a caption", "zwei ☃"],
                "count": [42],
                "animated": [True],
            }
        }


def _output_path(name: str) -> str:
    import folder_paths  # noqa: PLC0415

    return os.path.join(folder_paths.get_output_directory(), name)


class TestIrregular(_Output):
    """Names something as its result that exists, but is not a regular file."""

    inputs: ClassVar = {"kind": (["pipe", "folder", "loop"],)}

    def run(self, kind: str) -> dict[str, Any]:
        path = _output_path(f"irregular-{kind}")
        with contextlib.suppress(FileExistsError):
            if kind == "pipe":
                os.mkfifo(path)
            elif kind == "folder":
                os.mkdir(path)
            else:
                os.symlink(path, path)
        return {"ui": {"things": [{"filename": os.path.basename(path)}]}}


class TestFirst(_Output):
    """Writes a result before the node that it is linked to runs."""

    RETURN_TYPES: ClassVar = ("STRING",)

    def run(self) -> dict[str, Any]:
        with open(_output_path("first.txt"), "w") as file:
            file.write("first")
        return {"ui": {"things": [{"filename": "first.txt"}]}, "result": ("reason",)}


class TestLate(_Output):
    """Names a file that a later node writes."""

    RETURN_TYPES: ClassVar = ("INT",)

    def run(self) -> dict[str, Any]:
        with contextlib.suppress(FileNotFoundError):
            os.remove(_output_path("late.bin"))
        return {"ui": {"things": [{"filename": "late.bin"}]}, "result": (1,)}


class TestLateFile(_Output):
    inputs: ClassVar = {"after": ("INT", {})}

    def run(self, after: int) -> dict[str, Any]:
        with open(_output_path("late.bin"), "w") as file:
            file.write("late")
        return {"ui": {"things": [{"filename": "late.bin"}]}}


class TestTorch(_Output):
    """How packages were imported: torch's allocator, what loaded before it; and the arguments."""

    def run(self) -> dict[str, Any]:
        facts = {
            "backend": torch.cuda.get_allocator_backend() if torch.version.cuda else "",
            "variable": os.environ.get("PYTORCH_CUDA_ALLOC_CONF"),
            "sends_telemetry": not constants.HF_HUB_DISABLE_TELEMETRY,
            "uses_cuda": torch.cuda.is_initialized(),
            "modules": [name for name in sys.modules if name in ("comfy_aimdo.control", "torch")],
            "arguments": sys.argv[1:],
        }
        return {"ui": {"text": [json.dumps(facts)]}}


class TestCompiled(_Output):
    """Says what torch.compile has found in its caches, and what not, to make these samples."""

    inputs: ClassVar = {"samples": ("LATENT",)}

    def run(self, samples: Any) -> dict[str, Any]:
        from torch._dynamo.utils import counters  # noqa: PLC0415

        return {"ui": {"text": [json.dumps(counters["inductor"])]}}


def replace_a_class() -> None:
    """Newer versions of ComfyUI run a node of a class that is gone as one of another class."""
    try:
        from comfy_api.latest import io  # type: ignore[import-not-found]  # noqa: PLC0415
        from server import PromptServer  # noqa: PLC0415

        manager = PromptServer.instance.node_replace_manager
    except (ImportError, AttributeError):
        return
    mapping = [{"new_id": "image", "old_id": "file"}]
    manager.register(
        io.NodeReplace(new_node_id="LoadImage", old_node_id="TestOldLoader", input_mapping=mapping)
    )


replace_a_class()

NODE_CLASS_MAPPINGS = {
    cls.__name__: cls
    for cls in (
        TestRaise,
        TestOutOfMemory,
        TestWrapped,
        TestDevice,
        TestAllocate,
        TestKill,
        TestExit,
        TestSleep,
        TestWait,
        TestNewName,
        TestHold,
        TestCycle,
        TestSteps,
        TestExpand,
        TestNoStatus,
        TestBroadcast,
        TestOddProgress,
        TestManyProgress,
        TestUi,
        TestManyChoices,
        TestFixedName,
        TestConditioning,
        TestOutputs,
        TestIrregular,
        TestFirst,
        TestLate,
        TestLateFile,
        TestTorch,
        TestCompiled,
    )
}
