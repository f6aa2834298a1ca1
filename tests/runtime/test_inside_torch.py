"""torch has the same allocator in a started and in a woken ComfyUI: the one that ComfyUI chooses.

What cannot be tried without a GPU: a GPU's memory in that allocator, and comfy-aimdo at work.
"""

import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from handler.comfyui import ComfyUI
from handler.comfyui_version import ComfyUIVersion
from handler.settings import Settings
from handler.worker_protocol import Depth, WorkerStatus
from runtime.worker import inside_torch
from runtime.worker.inside_torch import ASYNC, NATIVE, allocator_for
from tests.runtime.test_worker import StartWorker, start_worker
from tests.workflows import one

# They need ComfyUI and its Python.
pytestmark = pytest.mark.slow

__all__ = ["start_worker"]

COMMAND = ["main.py", "--port", "1"]
NAMES = ["NVIDIA L40S", "NVIDIA GeForce GTX 1650", "Tesla M60", "NVIDIA Tesla M60"]
AskComfyUI = Callable[..., str]


@pytest.fixture
def code(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the real ComfyUI, which is the current one."""
    folder = Settings.from_env(os.environ).comfyui_code
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def install_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A torch of a version, of which there is no more than the version."""

    def install(version: str) -> None:
        (tmp_path / "torch").mkdir()
        (tmp_path / "torch" / "__init__.py").touch()
        (tmp_path / "torch" / "version.py").write_text(f"__version__ = {version!r}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return install


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], Path]:
    """A program of that name which names these GPUs, and the file that it makes when it runs."""

    def install(names: list[str]) -> Path:
        program, calls = tmp_path / "bin" / "nvidia-smi", tmp_path / "calls"
        program.parent.mkdir()
        lines = "".join(
            f"echo 'GPU {number}: {name} (UUID: GPU-1)'\n" for number, name in enumerate(names)
        )
        program.write_text(f"#!/bin/sh\ntouch {calls}\n{lines}")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        return calls

    return install


def driver_files(folder: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        file = folder / "gpus" / f"0000:0{number}:00.0" / "information"
        file.parent.mkdir(parents=True)
        file.write_text(f"Model: \t\t {name}\nIRQ:   \t\t 92\nGPU UUID: \t GPU-1\n")
    return folder / "gpus"


def choice_of_comfyui(*arguments: str) -> str:
    """What the real cuda_malloc.py in the current folder chooses."""
    ask = (
        "import comfy.options; comfy.options.enable_args_parsing()\n"
        "import cuda_malloc; print('cuda_malloc', cuda_malloc.args.cuda_malloc)"
    )
    line = [str(Settings.from_env(os.environ).comfyui_interpreter), "-Bc", ask, *arguments]
    answer = subprocess.run(line, capture_output=True, text=True, check=True)
    return {"cuda_malloc True": ASYNC, "cuda_malloc False": NATIVE}[answer.stdout.strip()]


@pytest.mark.parametrize("version", ["2.9.1+cu128", "2.14.1+cu130", "2.9.1+cpu", "1.13.1+cu117"])
@pytest.mark.parametrize("names", [*([name] for name in NAMES), NAMES, []], ids=str)
@pytest.mark.usefixtures("code")
def test_choice_is_that_of_comfyui_for_every_gpu(
    version: str,
    names: list[str],
    tmp_path: Path,
    install_torch: Callable[[str], None],
    nvidia_smi: Callable[[list[str]], Path],
) -> None:
    install_torch(version)
    nvidia_smi(names)

    by_driver = allocator_for(COMMAND, driver_files(tmp_path, names))
    by_program = allocator_for(COMMAND, Path("/nowhere"))

    assert by_driver == by_program == [choice_of_comfyui()]


@pytest.mark.parametrize(
    "fast", [["--fast"], ["--fast", "autotune"], ["--fast", "fp16_accumulation"], ["--fast-disk"]]
)
@pytest.mark.usefixtures("code")
def test_choice_is_that_of_comfyui_with_its_optimisations(
    fast: list[str], install_torch: Callable[[str], None]
) -> None:
    install_torch("2.14.1+cu130")
    known = [] if fast == ["--fast-disk"] else fast

    chosen = allocator_for([*COMMAND, *fast, "--cpu"], Path("/nowhere"))

    assert chosen == [choice_of_comfyui(*known, "--cpu")]


@pytest.mark.parametrize("given", [ASYNC, NATIVE])
@pytest.mark.usefixtures("code")
def test_choice_of_the_user_is_kept(given: str) -> None:
    assert allocator_for([*COMMAND, given]) == []


@pytest.mark.usefixtures("code")
def test_nobody_asks_nvidia_smi_where_the_driver_has_files(
    tmp_path: Path,
    install_torch: Callable[[str], None],
    nvidia_smi: Callable[[list[str]], Path],
) -> None:
    install_torch("2.9.1+cu128")
    calls = nvidia_smi(["NVIDIA L40S"])

    chosen = allocator_for(COMMAND, driver_files(tmp_path, ["NVIDIA L40S"]))
    choice_of_comfyui(*chosen)

    assert chosen == [ASYNC]
    assert not calls.exists()
    choice_of_comfyui()
    assert calls.exists()


@pytest.mark.parametrize("source", [None, "", "blacklist = names()", "blacklist = {", "x = 1"])
def test_comfyui_with_another_rule_chooses_by_itself(
    source: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if source is not None:
        (tmp_path / "cuda_malloc.py").write_text(source)
    monkeypatch.chdir(tmp_path)

    assert allocator_for(COMMAND) == []


@pytest.mark.parametrize("given", [None, "max_split_size_mb:512"])
@pytest.mark.parametrize("choice", [ASYNC, NATIVE])
def test_torch_is_imported_after_aimdo_with_the_allocator_in_its_environment(
    given: str | None, choice: str, tmp_path: Path
) -> None:
    (tmp_path / "comfy_aimdo").mkdir()
    (tmp_path / "comfy_aimdo" / "control.py").write_text(
        "import logging\ndef init():\n    print('aimdo')\n    logging.warning('no GPU')\n"
    )
    (tmp_path / "torch.py").write_text(
        "import os\nprint('torch', os.environ.get('PYTORCH_CUDA_ALLOC_CONF'))\n"
    )
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    if given:
        environ["PYTORCH_CUDA_ALLOC_CONF"] = given
    code = (
        "import logging, os, runpy, sys\n"
        "runpy.run_path(sys.argv[1])['import_torch'](['main.py', sys.argv[2]])\n"
        "print(os.environ.get('PYTORCH_CUDA_ALLOC_CONF'), logging.root.handlers)\n"
    )
    python = str(Settings.from_env(os.environ).comfyui_interpreter)

    done = subprocess.run(
        [python, "-Bc", code, inside_torch.__file__, choice],
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )

    backend = ["backend:cudaMallocAsync"] if choice == ASYNC else []
    at_import = ",".join([*([given] if given else []), *backend]) or None
    assert done.stdout.splitlines() == ["aimdo", f"torch {at_import}", f"{given} []"]
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "backend"), [("", "cudaMallocAsync"), (f" {NATIVE}", "native")]
)
def test_woken_comfyui_has_the_allocator_of_a_started_one(
    arguments: str, backend: str, start_worker: StartWorker
) -> None:
    worker = start_worker(COMFYUI_ARGS=os.environ["COMFYUI_ARGS"] + arguments)

    started = facts_of(worker.wake())
    worker.sleep(Depth.STOP)
    worker.prewarmed_pid()
    woken = facts_of(worker.wake())

    assert without_port(woken) == without_port(started)
    assert not woken["uses_cuda"]
    assert not woken["sends_telemetry"]
    # '' where torch was built for another kind of device.
    assert woken["backend"] in (backend, "")
    assert "already imported" not in "\n".join(worker_log(worker.folder))


def facts_of(worker: WorkerStatus) -> dict[str, Any]:
    with closing(ComfyUI(worker.base_url, ComfyUIVersion(worker.comfyui_version))) as client:
        prompt_id = str(uuid.uuid4())
        client.submit(one("TestTorch"), prompt_id)
        entry = client.follow(prompt_id, lambda _: None, deadline=time.monotonic() + 60)
    facts: dict[str, Any] = json.loads(entry["outputs"]["7"]["text"][0])
    return facts


def without_port(facts: dict[str, Any]) -> dict[str, Any]:
    arguments = list(facts["arguments"])
    del arguments[arguments.index("--port") + 1]
    return {**facts, "arguments": arguments}


def worker_log(folder: Path) -> list[str]:
    return (folder / "worker.log").read_text().splitlines()
