"""Which results of earlier prompts stay in ComfyUI's process, and for how long.

No GPU is here: its tensors are stand-ins with ComfyUI's names. What the real ComfyUI does on a CPU
is in test_kept_models.py.
"""

import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from handler.settings import PROJECT, Settings
from runtime.worker import inside_models
from runtime.worker.inside_models import KeptModels
from tests.processes import wait_until


class Device(NamedTuple):
    type: str


GPU, CPU = Device("cuda"), Device("cpu")
HEADROOM = 10


@dataclass(eq=False)
class Model:
    """A PyTorch module with one weight."""

    size_bytes: int = 100
    device: Device = CPU

    def parameters(self) -> list[Any]:
        return [SimpleNamespace(nbytes=self.size_bytes, device=self.device)]

    def buffers(self) -> list[Any]:
        return []


@dataclass(eq=False)
class ModelPatcher:
    model: Model = field(default_factory=Model)
    offload_device: Device = CPU
    model_options: dict[str, Any] = field(default_factory=lambda: {"transformer_options": {}})
    patches: dict[str, Any] = field(default_factory=dict)
    attachments: dict[str, Any] = field(default_factory=dict)
    wrappers: dict[str, Any] = field(default_factory=lambda: {"kind": {}})


class DynamicPatcher(ModelPatcher):
    def is_dynamic(self) -> bool:
        return True


@dataclass
class LoadedModel:
    """Moves a model as ComfyUI's does, which takes memory of the machine."""

    model: ModelPatcher
    machine: "Machine"

    def model_unload(self) -> None:
        self.machine.available_bytes -= self.model.model.size_bytes
        assert self.machine.available_bytes >= 0
        self.model.model.device = CPU


@dataclass
class Machine:
    """What is available on it, and the cache of the ComfyUI on it."""

    available_bytes: int = 1000
    loaded: list[LoadedModel] = field(default_factory=list)
    kept: KeptModels = field(init=False)
    cache: Any = field(init=False)

    def __post_init__(self) -> None:
        self.kept = KeptModels(HEADROOM, lambda: self.available_bytes)
        self.cache = Cache()
        execution = SimpleNamespace(CacheSet=CacheSet)
        self.nodes = SimpleNamespace(before_node_execution=lambda: None)
        plain = CacheSet.init_classic_cache
        try:
            self.kept.extend(execution, self.nodes)
            self.cache = CacheSet(self.cache).outputs
        finally:
            CacheSet.init_classic_cache = plain  # type: ignore[method-assign]

    def run(self, **results: Any) -> set[str]:
        """A prompt with these results by their keys; the keys of those that need not run."""
        self.cache.cache_key_set = SimpleNamespace(get_used_keys=results.keys)
        self.cache.clean_unused()
        found = set(self.cache.cache)
        for key, outputs in results.items():
            self.nodes.before_node_execution()
            self.cache.cache.setdefault(key, entry(outputs))
        return found

    def on_the_gpu(self, size_bytes: int = 100) -> ModelPatcher:
        patcher = ModelPatcher(Model(size_bytes, GPU))
        self.loaded.append(LoadedModel(patcher, self))
        return patcher


class Cache:
    """ComfyUI's classic cache, as far as it is extended."""

    def __init__(self) -> None:
        self.cache: dict[Any, Any] = {}
        self.cache_key_set: Any = None

    def clean_unused(self) -> None:
        for key in set(self.cache) - set(self.cache_key_set.get_used_keys()):
            del self.cache[key]


class CacheSet:
    def __init__(self, cache: Cache) -> None:
        self.outputs = cache
        self.init_classic_cache()

    def init_classic_cache(self) -> None: ...


def entry(*outputs: Any, ui: Any = None) -> Any:
    return SimpleNamespace(ui=ui, outputs=[[output] for output in outputs])


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    management = SimpleNamespace(current_loaded_models=machine.loaded, soft_empty_cache=lambda: 0)
    monkeypatch.setitem(sys.modules, "comfy.model_management", management)
    patchers = SimpleNamespace(ModelPatcher=ModelPatcher)
    monkeypatch.setitem(sys.modules, "comfy.model_patcher", patchers)
    return machine


def test_model_stays_until_a_prompt_needs_it_again(machine: Machine) -> None:
    machine.run(a=ModelPatcher(), image="pixels")
    machine.run(b=SimpleNamespace(patcher=ModelPatcher()))
    machine.run(c=SimpleNamespace(control_model_wrapped=ModelPatcher()))

    assert machine.run(a=1, image=2) == {"a"}
    assert machine.run(b=1) == {"b"}
    assert machine.run(c=1) == {"c"}
    assert machine.run(a=1, b=1, c=1) == {"a", "b", "c"}


@pytest.mark.parametrize(
    "other",
    [
        entry("a path"),
        entry(),
        entry(ModelPatcher(), object()),
        entry(ModelPatcher(), ui={"images": []}),
        entry(ModelPatcher(model_options={"transformer_options": {"patches": {"a": object()}}})),
        entry(ModelPatcher(patches={"a weight": [object()]})),
        entry(ModelPatcher(attachments={"a": object()})),
        entry(ModelPatcher(wrappers={"kind": {"key": object()}})),
        entry(ModelPatcher(offload_device=GPU)),
        entry(DynamicPatcher()),
    ],
    ids=[
        "text",
        "nothing",
        "more",
        "files",
        "transformer",
        "LoRA",
        "attachment",
        "wrapper",
        "GPU",
        "dynamic",
    ],
)
def test_nothing_else_stays(machine: Machine, other: Any) -> None:
    machine.run(other=None)
    machine.cache.cache["other"] = other

    machine.run(b=ModelPatcher())

    assert machine.run(other=1) == set()


def test_result_that_no_prompt_can_ask_for_does_not_stay(machine: Machine) -> None:
    again = ("LoaderThatAlwaysRuns", frozenset({(0, float("nan"))}))
    machine.run(a=ModelPatcher())
    machine.cache.cache |= {again: entry(ModelPatcher())}

    machine.run(b=ModelPatcher())

    assert set(machine.kept.take([again, "a"])) == {"a"}


def test_oldest_is_forgotten_before_a_node_runs_with_too_little_memory(machine: Machine) -> None:
    for name in "abc":
        machine.run(**{name: ModelPatcher()})

    def collect() -> None:
        machine.available_bytes += 5

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inside_models, "_return_freed_memory", collect)
        machine.available_bytes = HEADROOM - 1
        machine.nodes.before_node_execution()

    # `c` is of the last prompt, which the classic cache has as well.
    assert machine.run(a=1, b=1, c=1) == {"b", "c"}


def test_oldest_is_forgotten_when_another_process_takes_the_memory(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        machine.run(**{name: ModelPatcher()})

    def collect() -> None:
        machine.available_bytes = HEADROOM

    monkeypatch.setattr(inside_models, "_return_freed_memory", collect)
    threading.Thread(target=machine.kept.watch, daemon=True).start()
    machine.available_bytes = HEADROOM - 1

    assert wait_until(lambda: machine.available_bytes == HEADROOM)
    assert set(machine.kept.take("abc")) == {"b"}


def test_model_that_comfyui_counts_as_loaded_is_forgotten_by_the_executor_alone(
    machine: Machine,
) -> None:
    loaded = machine.on_the_gpu()
    machine.run(loader=ModelPatcher(loaded.model), lora=loaded)
    machine.run(loader=1, other=ModelPatcher())
    machine.run(loader=1)
    machine.available_bytes = HEADROOM - 1

    machine.kept.forget_if_short()
    machine.kept.forget_if_short()
    assert set(machine.kept.take(["other"])) == set()
    assert set(machine.kept.take(["lora"])) == {"lora"}


@pytest.mark.parametrize(("size_bytes", "is_kept"), [(495, True), (496, False)])
def test_room_for_a_file_and_its_model_is_made_before_it_is_read(
    machine: Machine, tmp_path: Path, size_bytes: int, *, is_kept: bool
) -> None:
    file = tmp_path / "model"
    file.write_bytes(bytes(size_bytes))
    machine.run(a=ModelPatcher())
    machine.run(b=ModelPatcher())

    machine.kept.make_room_to_load(str(file))
    machine.kept.make_room_to_load(str(tmp_path / "none"))

    assert (machine.run(a=1) == {"a"}) is is_kept


def test_kept_model_takes_no_memory_of_the_gpu(machine: Machine) -> None:
    patcher = machine.on_the_gpu()
    machine.run(loader=patcher, lora=ModelPatcher(patcher.model))

    # It is used by this prompt, with another LoRA.
    machine.run(loader=1, other=ModelPatcher(patcher.model))
    assert patcher.model.device is GPU
    machine.run(b=ModelPatcher())

    assert patcher.model.device is CPU
    assert machine.loaded == []
    assert machine.run(loader=1, lora=1, other=1) == {"loader", "lora", "other"}


def test_model_that_memory_has_no_room_for_is_forgotten_as_before(machine: Machine) -> None:
    small, large = machine.on_the_gpu(100), machine.on_the_gpu(891)
    machine.run(small=small, large=large, lora=ModelPatcher(large.model))

    machine.run(b=ModelPatcher())

    assert (small.model.device, large.model.device) == (CPU, GPU)
    assert machine.run(small=1, large=1, lora=1) == {"small"}


def test_older_models_make_room_for_one_that_leaves_the_gpu(machine: Machine) -> None:
    machine.run(old=machine.on_the_gpu(900))
    machine.run(new=machine.on_the_gpu(900))
    assert machine.available_bytes == 100

    def collect() -> None:
        machine.available_bytes = 1000

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inside_models, "_return_freed_memory", collect)
        machine.run(b=ModelPatcher())

    assert machine.run(old=1, new=1) == {"new"}


def test_model_that_does_not_leave_the_gpu_is_forgotten(machine: Machine) -> None:
    machine.run(a=ModelPatcher(Model(device=GPU)))

    machine.run(b=ModelPatcher())

    assert machine.run(a=1) == set()


@pytest.mark.parametrize("error", [OSError, ValueError, StopIteration])
def test_nothing_is_kept_where_nobody_knows_the_memory(
    machine: Machine, error: type[Exception]
) -> None:
    machine.run(a=ModelPatcher())
    machine.run(b=ModelPatcher())

    def unknown() -> int:
        raise error

    machine.kept._available_bytes = unknown
    machine.nodes.before_node_execution()

    assert machine.run(a=1) == set()


def test_comfyui_that_is_unlike_the_known_ones_has_its_classic_cache(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.run(a=ModelPatcher())
    machine.run(b=ModelPatcher())
    sys.modules["comfy.model_patcher"] = SimpleNamespace()  # type: ignore[assignment]

    assert machine.run(c=1) == set()

    assert machine.run(a=1) == set()
    assert "cannot keep the models" in caplog.text


def test_cache_that_is_dropped_takes_the_models_with_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.run(a=ModelPatcher())
    machine.run(b=ModelPatcher())
    monkeypatch.setattr(CacheSet, "init_classic_cache", CacheSet.init_classic_cache)
    machine.kept.extend(SimpleNamespace(CacheSet=CacheSet), SimpleNamespace(**vars(machine.nodes)))

    CacheSet(Cache())

    assert machine.kept.take(["a"]) == {}


_UNLOAD = """
import sys
sys.argv[1:] = ["--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import torch
from comfy import model_management
from comfy.model_patcher import ModelPatcher
from runtime.worker import inside_models

cpu = torch.device("cpu")
patchers = [ModelPatcher(torch.nn.Linear(64, 64), cpu, cpu) for _ in range(3)]
model_management.load_models_gpu(patchers)
assert len(model_management.current_loaded_models) == 3
assert all(patcher.loaded_size() > 0 for patcher in patchers)

inside_models._unload([patchers[0].model, patchers[2].model])

assert [each.model for each in model_management.current_loaded_models] == patchers[1:2]
assert [patcher.loaded_size() > 0 for patcher in patchers] == [False, True, False]
model_management.load_models_gpu(patchers)
assert len(model_management.current_loaded_models) == 3
print("unloaded and loaded again")
"""


@pytest.mark.slow
@pytest.mark.comfyui
def test_model_is_unloaded_as_comfyui_does_it() -> None:
    settings = Settings.from_env(os.environ)

    shown = subprocess.run(
        [str(settings.comfyui_interpreter), "-B", "-c", _UNLOAD],
        cwd=settings.comfyui_code,
        env={**os.environ, "PYTHONPATH": f"{settings.comfyui_code}{os.pathsep}{PROJECT}"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert "unloaded and loaded again" in shown.stdout, shown.stderr
