"""What the check finds: on the real CPU, and on the GPUs that a made-up PyTorch claims to have."""

import json
import os
import subprocess
import sys
from dataclasses import fields
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from handler.settings import PROJECT, Settings
from handler.start_report import Device
from runtime.worker import gpu_check

FILE = PROJECT / "runtime" / "worker" / "gpu_check.py"


@pytest.mark.slow
@pytest.mark.usefixtures("comfyui")
def test_cpu_computes() -> None:
    program = (
        "import importlib.util, json, torch\n"
        f"spec = importlib.util.spec_from_file_location('gpu_check', {str(FILE)!r})\n"
        "check = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(check)\n"
        "check.report(['main.py', '--cpu'])"
    )

    done = subprocess.run(
        [Settings.from_env(os.environ).comfyui_interpreter, "-c", program],
        capture_output=True,
        text=True,
        check=True,
    )

    facts = json.loads(done.stdout.removeprefix("[device] "))
    assert (facts["kind"], facts["problem"]) == ("cpu", "")
    assert facts["torch"]
    assert facts.keys() | {"driver"} == {field.name for field in fields(Device)}


class OutOfMemoryError(RuntimeError): ...


class Product(float):
    """A matrix: it can be multiplied and summed, and has the one item that it was made with."""

    __matmul__ = sum = lambda self, *_: self

    def item(self) -> float:
        return float(self)


def made_up_torch(*, total: float | Exception = 64.0**3, init: Exception | None = None) -> Any:
    def begin() -> None:
        if init:
            raise init

    def ones(*_: object, **__: object) -> Product:
        if isinstance(total, Exception):
            raise total
        return Product(total)

    return SimpleNamespace(
        __version__="2.14.1+cu130",
        version=SimpleNamespace(cuda="13.0", hip=None),
        ones=ones,
        cuda=SimpleNamespace(
            OutOfMemoryError=OutOfMemoryError,
            init=begin,
            get_device_name=lambda: "NVIDIA L4",
            get_device_capability=lambda: (8, 9),
            get_arch_list=lambda: ["sm_86", "sm_90"],
            mem_get_info=lambda: (20 << 30, 24 << 30),
        ),
    )


def test_gpu_is_described() -> None:
    facts = gpu_check.look(made_up_torch(), "cuda")

    assert facts == {
        "kind": "cuda",
        "name": "NVIDIA L4",
        "torch": "2.14.1+cu130",
        "cuda": "13.0",
        "rocm": "",
        "capability": "8.9",
        "kernels": ["sm_86", "sm_90"],
        "free_bytes": 20 << 30,
        "total_bytes": 24 << 30,
        "problem": "",
    }


@pytest.mark.parametrize(
    ("total", "problem"),
    [
        (0.0, "a product of matrices sums to 0.0"),
        (RuntimeError("CUDA error:\nXid"), "RuntimeError: CUDA error: Xid"),
        (OutOfMemoryError("other programs"), ""),
    ],
)
def test_problem_of_a_gpu_is_what_its_first_product_shows(
    total: float | Exception, problem: str
) -> None:
    facts = gpu_check.look(made_up_torch(total=total), "cuda")

    assert facts["problem"] == problem
    assert facts["name"] == "NVIDIA L4"


def test_gpu_that_cannot_be_used_has_no_name() -> None:
    torch = made_up_torch(init=RuntimeError("The NVIDIA driver on your system is too old"))

    facts = gpu_check.look(torch, "cuda")

    assert (facts["name"], facts["capability"]) == ("", "")
    assert facts["problem"] == "RuntimeError: The NVIDIA driver on your system is too old"


def test_nothing_is_said_before_pytorch_is_imported(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    gpu_check.report(["main.py"])
    assert capfd.readouterr().out == ""

    monkeypatch.setitem(sys.modules, "torch", made_up_torch())
    gpu_check.report(["main.py"])
    assert json.loads(capfd.readouterr().out.removeprefix("[device] "))["kind"] == "cuda"


@pytest.mark.parametrize("kind", ["cuda", "xpu", "cpu"])
def test_device_is_the_one_that_comfyui_has_chosen(
    kind: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    management: Any = ModuleType("comfy.model_management")
    management.get_torch_device = lambda: SimpleNamespace(type=kind)
    monkeypatch.setitem(sys.modules, "torch", made_up_torch())
    monkeypatch.setitem(sys.modules, "comfy.model_management", management)

    gpu_check.report(["main.py"])

    assert json.loads(capfd.readouterr().out.removeprefix("[device] "))["kind"] == kind
