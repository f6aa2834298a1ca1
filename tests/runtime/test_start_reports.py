"""What a start of ComfyUI shows of its custom nodes and its device, and what becomes of the worker.

The custom nodes are real ones that cannot be imported, in the real ComfyUI. The device is that of a
made-up PyTorch, for no machine has a broken GPU when a test needs one.
"""

import json
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from handler.settings import Settings
from handler.start_report import FailedNode
from handler.worker_protocol import State, WorkerStatus
from runtime.installation import driver
from runtime.worker import comfyui_arguments
from runtime.worker.lifecycle import Worker
from runtime.worker.start_reports import StartReports
from tests.processes import wait_until
from tests.runtime.custom_node_repositories import WORKING_NODE
from tests.runtime.test_worker import RunningWorker
from tests.test_http_api import serve

BROKEN_NODES = {
    "lacks_a_package": "import no_such_package",
    "wrong_syntax": "def (",
    "no_nodes": "",
    "refuses": "def comfy_entrypoint():\n    raise RuntimeError('only on a GPU\\nof 80 GB')\n",
}


def write_nodes(folder: Path, nodes: Mapping[str, str]) -> str:
    """The arguments of a ComfyUI that has these custom nodes beside its own."""
    for name, content in nodes.items():
        (folder / "nodes" / name).mkdir(parents=True)
        (folder / "nodes" / name / "__init__.py").write_text(content)
    (folder / "nodes.yaml").write_text(f"tests:\n  custom_nodes: {folder / 'nodes'}\n")
    return f"--disable-api-nodes --extra-model-paths-config {folder / 'nodes.yaml'}"


@contextmanager
def worker_with(
    folder: Path, nodes: Mapping[str, str], **variables: str
) -> Iterator[tuple[WorkerStatus, Path]]:
    """How a worker has settled whose ComfyUI has these custom nodes, and its log."""
    arguments = write_nodes(folder, nodes)
    worker = RunningWorker(folder, [], {"COMFYUI_ARGS": arguments} | variables)
    with worker.process:
        try:
            yield worker.wake(), folder / "worker.log"
        finally:
            worker.process.kill()


@pytest.mark.slow
@pytest.mark.usefixtures("comfyui")
def test_nodes_that_cannot_be_imported_are_in_the_status_and_in_the_log(tmp_path: Path) -> None:
    with worker_with(tmp_path, BROKEN_NODES | {"works": WORKING_NODE}) as (status, log):
        assert status.state is State.READY
        reasons = {node.name: node.reason for node in status.failed_nodes}
        assert reasons.keys() == BROKEN_NODES.keys()
        missing = "ModuleNotFoundError: No module named 'no_such_package'"
        assert reasons["lacks_a_package"] == missing
        assert reasons["wrong_syntax"].startswith("SyntaxError: invalid syntax")
        assert "NODE_CLASS_MAPPINGS" in reasons["no_nodes"]
        assert reasons["refuses"] == "RuntimeError: of 80 GB"
        assert status.device is not None
        assert (status.device.kind, status.device.problem) == ("cpu", "")
        lines = log.read_text().splitlines()

    assert f"custom node lacks_a_package failed to import: {missing}" in lines
    (device,) = (line.partition(" ")[2] for line in lines if line.startswith("device: "))
    assert json.loads(device)["kind"] == "cpu"


@pytest.mark.slow
@pytest.mark.usefixtures("comfyui")
def test_required_node_that_cannot_be_imported_fails_the_start(tmp_path: Path) -> None:
    nodes = {"lacks_a_package": "import no_such_package"}
    with worker_with(tmp_path, nodes, CUSTOM_NODES_REQUIRED="all") as (status, _):
        assert status.state is State.INACTIVE
        assert status.failure == (
            "required custom nodes are missing: lacks_a_package failed to import:"
            " ModuleNotFoundError: No module named 'no_such_package'"
        )


@pytest.mark.slow
@pytest.mark.usefixtures("comfyui")
def test_node_that_ends_comfyui_is_named(tmp_path: Path) -> None:
    with worker_with(tmp_path, {"ends": "import sys; sys.exit(7)"}) as (status, _):
        assert status.state is State.INACTIVE
        assert status.failure.startswith(
            "ComfyUI ended with exit status 7, while it imported the custom node ends."
        )


@pytest.mark.slow
@pytest.mark.usefixtures("comfyui")
@pytest.mark.timeout(240)
def test_http_api_tells_the_reason_to_those_with_the_token_and_the_name_to_all(
    tmp_path: Path,
) -> None:
    arguments = write_nodes(tmp_path, {"lacks_a_package": "import no_such_package"})
    with serve(tmp_path, COMFYUI_ARGS=arguments, API_TOKEN="secret") as api:
        token = {"headers": {"Authorization": "Bearer secret"}}
        assert wait_until(lambda: api.get("/worker", **token).json()["state"] == "ready", 120)

        report = api.get("/worker", **token).json()
        health = api.get("/health").json()

    reason = "ModuleNotFoundError: No module named 'no_such_package'"
    assert report["failed_nodes"] == [{"name": "lacks_a_package", "reason": reason}]
    assert (report["device"]["kind"], report["device"]["problem"]) == ("cpu", "")
    assert health == {"status": "ok", "failed_nodes": ["lacks_a_package"]}


def test_required_nodes_are_those_that_have_loaded() -> None:
    reports = StartReports()
    for name, state in (("good", "loaded"), ("bad", "failed")):
        content = {"name": name, "state": state, "reason": "because"}
        assert reports.take(f"[custom node] {json.dumps(content)}")

    assert reports.failed_nodes == (FailedNode("bad", "because"),)
    assert reports.missing_nodes(()) == ""
    assert reports.missing_nodes(("good",)) == ""
    assert reports.missing_nodes(("good", "bad")) == "bad failed to import: because"
    assert reports.missing_nodes(("all",)) == "bad failed to import: because"
    assert reports.missing_nodes(("all", "gone")) == (
        "bad failed to import: because; gone is not in the folder custom_nodes"
    )


def test_node_that_is_being_imported_is_named_until_it_has_loaded() -> None:
    reports = StartReports()
    told = []
    for state in ("begins", "loaded"):
        content = {"name": "slow", "state": state, "reason": ""}
        reports.take(f"[custom node] {json.dumps(content)}")
        told.append(reports.during)

    assert told == [", while it imported the custom node slow", ""]


@pytest.mark.parametrize(
    "line",
    [
        "Starting server",
        "[device] {no JSON}",
        '[device] {"kernels": []}',
        '[device] {"kind": "cpu"}',
        '[custom node] {"name": "x"}',
    ],
)
def test_line_that_is_no_report_stays_in_the_log(line: str) -> None:
    reports = StartReports()

    assert not reports.take(line)
    assert (reports.device, reports.failed_nodes) == (None, ())


TORCH = """
from types import SimpleNamespace
__version__, version = "2.14.1+cu130", SimpleNamespace(cuda="13.0", hip=None)
def ones(*_, **__):
    raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
def init():
    if not HAS_GPU:
        raise RuntimeError("The NVIDIA driver on your system is too old")
cuda = SimpleNamespace(
    init=init, get_device_name=lambda: "NVIDIA L4", get_device_capability=lambda: (8, 9),
    get_arch_list=lambda: ["sm_86"], mem_get_info=lambda: (1 << 34, 1 << 34),
    OutOfMemoryError=MemoryError,
)
"""
# ComfyUI imports torch and uses the GPU, starts its executor, and serves.
MAIN = """
import runpy, threading, torch
def prompt_worker(): ...
torch.cuda.init()
threading.Thread(target=prompt_worker).start()
runpy.run_path({fake!r}, run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("has_gpu", "fault"),
    [
        (False, "PyTorch is built with CUDA 13.0, which needs the NVIDIA driver 580"),
        (True, "the GPU NVIDIA L4 of compute capability 8.9 does not compute: RuntimeError"),
    ],
    ids=["driver too old, ComfyUI ends", "broken GPU, ComfyUI serves"],
)
def test_device_that_cannot_compute_makes_the_machine_unfit_at_once(
    has_gpu: bool, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tmp_path / "ComfyUI"
    code.mkdir()
    (code / "torch.py").write_text(f"HAS_GPU = {has_gpu}{TORCH}")
    fake = Path(__file__).parent.parent / "fakes" / "comfyui" / "main.py"
    (code / "main.py").write_text(MAIN.format(fake=str(fake)))
    kernel_module = tmp_path / "version"
    kernel_module.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun\n")
    monkeypatch.setattr(driver, "KERNEL_MODULE", kernel_module)
    monkeypatch.setattr(comfyui_arguments, "has_gpu", lambda: True)
    worker = Worker(
        Settings(
            comfyui_dir=code,
            comfyui_python=Path(sys.executable),
            comfyui_args=(),
            comfyui_port=0,
            comfyui_data_dir=tmp_path / "data",
            worker_dir_given=tmp_path / "worker",
        )
    )
    thread = threading.Thread(target=worker.supervise)
    thread.start()
    try:
        assert worker.wait_settled(60) is State.FAILED
        assert worker.unfit_reason.startswith(fault)
        status = worker.describe()
    finally:
        worker.stop()
        thread.join(60)

    assert status.failure.startswith(fault)
    assert status.device is not None
    assert status.device.driver == "535.183.01"
    assert status.starts == 0
