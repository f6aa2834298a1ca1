"""Models by URL that an earlier worker has left: they make room, and are completed when named."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from handler.model_urls import take_model_urls
from handler.outbound import Allowed
from handler.settings import Settings
from handler.worker_protocol import ModelUrl
from runtime.models.load_state import LoadState
from runtime.models.manifest import Manifest, ModelFile
from runtime.models.parts import Parts, is_placeholder
from runtime.models.supply import ModelSupply
from tests.model_server import ModelServer, model_server
from tests.processes import wait_until
from tests.small_disk import small_disk
from tests.workflows import node

pytestmark = pytest.mark.slow

MB = 1_000_000
SIZE = 4 * MB
OLD = time.time() - 7 * 24 * 3600

Start = Callable[..., ModelSupply]


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server() as server:
        for name in ("a", "b", "listed"):
            server.add(f"{name}.safetensors", os.urandom(SIZE))
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def settings(folder: Path) -> Settings:
    return Settings(
        models_dirs=(folder,),
        comfyui_dir=folder / "no",
        clean_below_mb=0,
        model_url_hosts=("127.0.0.1",),
        outbound_allow=Allowed.parse("127.0.0.1"),
    )


@pytest.fixture
def start(settings: Settings) -> Iterator[Start]:
    """A worker's supply, which ends the one before."""
    with ExitStack() as stack:

        def start(*files: ModelFile) -> ModelSupply:
            stack.close()
            supply = ModelSupply(settings, [Manifest(name="test", files=files)])
            stack.callback(supply.stop)
            supply.start()
            return supply

        yield start


def named(server: ModelServer, name: str, settings: Settings) -> ModelUrl:
    """As a request names the model."""
    workflow = {"1": node("VAELoader", vae_name=f"{server.url}/{name}.safetensors")}
    (model,) = take_model_urls(workflow, settings)[1]
    return model


def load(supply: ModelSupply, path: Path) -> LoadState:
    with supply.load(path) as states:
        return list(states)[-1]


def bring(supply: ModelSupply, model: ModelUrl, folder: Path) -> Path:
    """Have a job bring it to the disk."""
    path = folder / model.folder / model.name
    supply.add_urls([model])
    job = supply.begin_job([model.name])
    assert load(supply, path).is_complete
    supply.end_job(job)
    return path


def make_left_over(path: Path, *, age_at: float) -> None:
    """What a killed worker leaves of a model: a placeholder, and half of the bytes."""
    path.parent.mkdir(parents=True)
    Parts(path).placeholder.touch()
    Parts(path).part.write_bytes(os.urandom(SIZE // 2))
    path.symlink_to(Parts(path).placeholder.name)
    os.utime(path, (age_at, age_at), follow_symlinks=False)


@pytest.mark.parametrize("older", ["a", "b"])
def test_least_recently_used_one_makes_room_after_a_restart(
    older: str, start: Start, server: ModelServer, settings: Settings, folder: Path
) -> None:
    with small_disk(folder, 10 * MB):
        first = start()
        paths = {name: bring(first, named(server, name, settings), folder) for name in ("a", "b")}
        os.utime(paths[older], (OLD, OLD))
        listed = ModelFile(
            name="listed.safetensors",
            folder="vae",
            sources=(f"{server.url}/listed.safetensors",),
            size_bytes=SIZE,
        )

        second = start(listed)
        second.begin_job([listed.name])

        assert load(second, folder / "vae" / listed.name).is_complete
        assert [name for name, path in paths.items() if is_placeholder(path)] == [older]
        second.stop()


def test_model_that_is_there_is_loaded_by_its_name_after_a_restart(
    start: Start, server: ModelServer, settings: Settings, folder: Path
) -> None:
    path = bring(start(), named(server, "a", settings), folder)
    requests = len(server.requests)

    assert load(start(), path) == LoadState(is_complete=True)
    assert len(server.requests) == requests


def test_unfinished_one_is_loaded_after_its_url_was_named_again_alone(
    start: Start, server: ModelServer, settings: Settings, folder: Path
) -> None:
    model = named(server, "a", settings)
    server.bytes_per_s = 1000
    first = start()
    first.add_urls([model])
    first.begin_job([model.name])
    path = folder / model.folder / model.name
    assert wait_until(Parts(path).part.exists)
    server.bytes_per_s = None

    second = start()
    second.begin_job([model.name])
    state = load(second, path)

    assert state.is_request_wrong
    assert "name it by its URL again" in state.failure
    bring(second, model, folder)
    assert path.read_bytes() == server.files["/a.safetensors"]


def test_unfinished_one_that_nobody_has_named_for_a_day_is_deleted(
    start: Start, folder: Path
) -> None:
    old = folder / "vae" / "from_url" / ("0" * 16) / "old.safetensors"
    new = folder / "vae" / "from_url" / ("1" * 16) / "new.safetensors"
    make_left_over(old, age_at=OLD)
    make_left_over(new, age_at=time.time())

    start()

    assert list(old.parent.iterdir()) == []
    assert is_placeholder(new)
    assert Parts(new).part.exists()


def test_naming_a_url_again_keeps_its_placeholder_from_the_next_worker(
    start: Start, server: ModelServer, settings: Settings, folder: Path
) -> None:
    model = named(server, "a", settings)
    path = folder / model.folder / model.name
    make_left_over(path, age_at=time.time())
    server.bytes_per_s = 1
    first = start()
    os.utime(path, (OLD, OLD), follow_symlinks=False)

    first.add_urls([model])
    start()

    assert is_placeholder(path)


def test_placeholder_of_a_download_under_way_stays(
    start: Start, server: ModelServer, settings: Settings, folder: Path
) -> None:
    model = named(server, "a", settings)
    server.bytes_per_s = 1000
    other = ModelSupply(settings, [])
    other.add_urls([model])
    other.begin_job([model.name])
    path = folder / model.folder / model.name
    assert wait_until(Parts(path).part.exists)
    os.utime(path, (OLD, OLD), follow_symlinks=False)

    start()

    assert is_placeholder(path)
    assert Parts(path).part.exists()
    other.stop()


def test_file_of_the_user_in_such_a_folder_is_not_the_workers(start: Start, folder: Path) -> None:
    own = folder / "vae" / "from_url" / "mine" / "own.safetensors"
    make_left_over(own, age_at=OLD)

    start()

    assert is_placeholder(own)
