"""What ComfyUI's process says that compiled code depends on.

PyTorch is made up: the real one is in tests/test_compile_cache.py, without a GPU.
"""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.worker import inside_compiler
from runtime.worker.compile_key import Compiler, read_compiler

Written = pytest.CaptureFixture[str]


def torch_with(*, cuda: str | None = None, hip: str | None = None, **gpu: Any) -> Any:
    """A PyTorch of these versions, on a machine whose GPU has these properties."""
    return SimpleNamespace(
        __version__="2.14.1",
        version=SimpleNamespace(cuda=cuda, hip=hip),
        cuda=SimpleNamespace(get_device_properties=lambda _device: SimpleNamespace(**gpu)),
    )


NVIDIA = torch_with(cuda="13.0", name="NVIDIA L40S", major=8, minor=9)
AMD = torch_with(
    hip="6.4", name="AMD Instinct MI300X", major=9, minor=4, gcnArchName="gfx942:sramecc+"
)
CPU = torch_with(cuda="13.0")


@pytest.mark.parametrize(
    ("torch", "kind", "cuda", "rocm", "device", "capability"),
    [
        (NVIDIA, "cuda", "13.0", "", "NVIDIA L40S", "8.9"),
        (AMD, "cuda", "", "6.4", "AMD Instinct MI300X", "gfx942:sramecc+"),
        (CPU, "cpu", "13.0", "", "cpu", ""),
    ],
)
def test_report_names_the_device_that_comfyui_has_chosen(
    monkeypatch: pytest.MonkeyPatch,
    capfd: Written,
    torch: Any,
    kind: str,
    cuda: str,
    rocm: str,
    device: str,
    capability: str,
) -> None:
    chosen = SimpleNamespace(get_torch_device=lambda: SimpleNamespace(type=kind))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "comfy.model_management", chosen)
    monkeypatch.setenv(inside_compiler.VARIABLE, "1")

    inside_compiler.report()

    assert read_compiler(capfd.readouterr().out.strip()) == Compiler(
        torch="2.14.1",
        # The handler's environment, in which this test runs, has none.
        triton="",
        cuda=cuda,
        rocm=rocm,
        python=f"3.{sys.version_info.minor}",
        device=device,
        capability=capability,
    )


def test_device_that_cannot_be_read_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: Written
) -> None:
    monkeypatch.setitem(sys.modules, "torch", NVIDIA)
    monkeypatch.delitem(sys.modules, "comfy.model_management", raising=False)
    monkeypatch.setenv(inside_compiler.VARIABLE, "1")

    inside_compiler.report()

    assert capfd.readouterr().out.startswith("the cache of compiled code is not used: KeyError")


def test_comfyui_without_the_setting_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: Written
) -> None:
    monkeypatch.delenv(inside_compiler.VARIABLE, raising=False)

    inside_compiler.report()

    assert capfd.readouterr().out == ""
