"""The gate between ComfyUI's loader and the worker, both sides connected."""

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from handler.settings import Settings
from runtime.models.manifest import Manifest, ModelFile
from runtime.models.parts import Parts
from runtime.models.placeholders import put_placeholder
from runtime.models.supply import ModelSupply
from runtime.worker import inside_gate
from runtime.worker.gate import open_gate
from runtime.worker.inside_gate import ModelUnavailable, gated
from tests.model_server import Faults, ModelServer, model_server
from tests.processes import wait_until

CONTENT = os.urandom(100_000)
NEARLY_NOTHING = 1

pytestmark = pytest.mark.slow


def read(path: str, *, times: int = 1) -> bytes:
    """A loader: what is gated takes the path and any other arguments."""
    return Path(path).read_bytes() * times


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server() as server:
        server.add("a.safetensors", CONTENT)
        yield server


@pytest.fixture
def slow_server(server: ModelServer) -> ModelServer:
    """Named before `address`, it is slow before the download begins."""
    server.bytes_per_s = NEARLY_NOTHING
    return server


@pytest.fixture
def broken_server(server: ModelServer) -> ModelServer:
    """Named before `address`, it is broken before the download begins."""
    server.faults["/a.safetensors"] = Faults(always_status=404)
    return server


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "models" / "vae" / "a.safetensors"


@pytest.fixture
def address(tmp_path: Path, server: ModelServer, target: Path) -> Iterator[Path]:
    """The socket of a worker that downloads one model."""
    settings = Settings(models_dirs=(target.parent.parent,), comfyui_dir=tmp_path / "no")
    file = ModelFile(
        name=target.name, folder="vae", sources=(f"{server.url}/{target.name}",), size_bytes=100_000
    )
    supply = ModelSupply(settings, [Manifest(name="test", files=(file,))])
    with open_gate(tmp_path / "gate.sock", supply):
        supply.start()
        yield tmp_path / "gate.sock"
        supply.stop()


def test_loader_gets_the_complete_file_and_its_other_arguments(address: Path, target: Path) -> None:
    assert gated(read, str(address))(str(target), times=2) == CONTENT * 2


def test_failure_reaches_the_loader_with_its_reason(
    broken_server: ModelServer, address: Path, target: Path
) -> None:
    with pytest.raises(ModelUnavailable, match=f"vae/{target.name}: .* 404"):
        gated(read, str(address))(str(target))


def test_file_that_the_worker_does_not_know_is_loaded_at_once(
    address: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.safetensors"
    own.write_bytes(b"own")

    assert gated(read, str(address))(str(own)) == b"own"


def test_loader_says_what_is_wrong_with_a_file_that_is_not_there(
    address: Path, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError):
        gated(read, str(address))(str(tmp_path / "none.safetensors"))


def test_without_a_worker_a_real_file_is_loaded(tmp_path: Path) -> None:
    own = tmp_path / "own.safetensors"
    own.write_bytes(b"own")

    assert gated(read, str(tmp_path / "no.sock"))(str(own)) == b"own"


def test_without_a_worker_a_placeholder_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    put_placeholder(ModelFile(name=path.name, folder="vae", sources=()), path)

    with pytest.raises(ModelUnavailable, match=r"a.safetensors is not complete, and no worker"):
        gated(read, str(tmp_path / "no.sock"))(str(path))


def test_link_of_the_user_is_a_model(address: Path, tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"own")
    link = tmp_path / "link.safetensors"
    link.symlink_to("real")

    assert gated(read, str(address))(str(link)) == b"own"


def test_interrupted_job_waits_no_longer(
    slow_server: ModelServer, address: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted = threading.Event()

    def throw_exception_if_processing_interrupted() -> None:
        if interrupted.is_set():
            # ComfyUI's own class is no OSError either.
            raise KeyError

    management = SimpleNamespace(
        throw_exception_if_processing_interrupted=throw_exception_if_processing_interrupted
    )
    monkeypatch.setitem(sys.modules, "comfy.model_management", management)
    threading.Timer(0.2, interrupted.set).start()

    with pytest.raises(KeyError):
        gated(read, str(address))(str(target))


def test_client_of_the_prompt_is_told_how_far_the_file_is(
    slow_server: ModelServer, address: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[str, dict[str, Any], str]] = []

    def send_sync(*message: Any) -> None:
        sent.append(message)
        slow_server.bytes_per_s = None

    instance = SimpleNamespace(last_prompt_id="p", client_id="c", send_sync=send_sync)
    prompt_server = SimpleNamespace(PromptServer=SimpleNamespace(instance=instance))
    monkeypatch.setitem(sys.modules, "server", prompt_server)

    gated(read, str(address))(str(target))

    assert {(name, client) for name, _, client in sent} == {("lambda_comfyui.weights", "c")}
    first, last = sent[0][1], sent[-1][1]
    assert first["prompt_id"] == "p"
    assert first["file"] == target.name
    assert not first["is_complete"]
    assert first["total_bytes"] == len(CONTENT)
    assert last["is_complete"]
    assert last["waited_s"] > 0


def test_model_stays_while_it_is_loaded(address: Path, target: Path, tmp_path: Path) -> None:
    """Another worker may remove it in the moment before: then the loader waits again."""
    from runtime.models.placeholders import remove_model  # noqa: PLC0415

    file = ModelFile(name=target.name, folder="vae", sources=(), size_bytes=len(CONTENT))

    def load(path: str) -> bool:
        return remove_model(file, target)

    assert gated(load, str(address))(str(target)) is False
    assert not target.is_symlink()
    assert wait_until(lambda: remove_model(file, target))
    assert Parts(target).placeholder.exists()


def test_room_is_made_when_the_file_is_complete_and_before_it_is_read(
    address: Path, target: Path
) -> None:
    sizes: list[int] = []

    def make_room(path: str) -> None:
        sizes.append(Path(path).stat().st_size)
        assert not Path(path).is_symlink()

    def load(path: str) -> list[int]:
        return list(sizes)

    assert gated(load, str(address), make_room)(str(target)) == [len(CONTENT)]


def test_loader_is_gated_as_soon_as_its_module_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "comfy"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "utils.py").write_text("def load_torch_file(ckpt):\n    return ckpt\n")
    (package / "early.py").write_text("from .utils import load_torch_file\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.setenv(inside_gate.SOCKET_VARIABLE, str(tmp_path / "no.sock"))
    path = tmp_path / "a.safetensors"
    put_placeholder(ModelFile(name=path.name, folder="vae", sources=()), path)

    inside_gate.install()
    early = __import__("comfy.early", fromlist=["load_torch_file"])

    assert isinstance(early, ModuleType)
    with pytest.raises(ModelUnavailable):
        early.load_torch_file(str(path))
