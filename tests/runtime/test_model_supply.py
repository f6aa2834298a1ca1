"""The models of a worker: which one arrives first, what a failed download and a small disk cost."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from handler.outbound import Allowed
from handler.settings import Settings
from handler.worker_protocol import ModelUrl
from runtime.models.load_state import LoadState
from runtime.models.manifest import Manifest, ModelFile
from runtime.models.parts import Parts, is_placeholder
from runtime.models.supply import ModelSupply
from tests.model_server import Faults, ModelServer, model_server
from tests.processes import wait_until
from tests.small_disk import small_disk

pytestmark = pytest.mark.slow

MB = 1_000_000
SIZES = {"vae": 1 * MB, "text": 4 * MB, "high": 8 * MB, "low": 8 * MB}

Start = Callable[..., ModelSupply]


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server() as server:
        for name, size in SIZES.items():
            server.add(f"{name}.safetensors", os.urandom(size))
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def start(folder: Path, server: ModelServer) -> Iterator[Start]:
    with ExitStack() as stack:

        def start(**sizes: int | None) -> ModelSupply:
            files = [
                ModelFile(
                    name=f"{name}.safetensors",
                    folder="vae",
                    sources=(f"{server.url}/{name}.safetensors",),
                    size_bytes=size,
                )
                for name, size in (sizes or SIZES).items()
            ]
            settings = Settings(
                models_dirs=(folder,),
                comfyui_dir=folder / "no",
                clean_below_mb=0,
                outbound_allow=Allowed.parse("127.0.0.1"),
            )
            supply = ModelSupply(settings, [Manifest(name="test", files=tuple(files))])
            stack.callback(supply.stop)
            supply.start()
            return supply

        yield start


def path_of(folder: Path, name: str) -> Path:
    return folder / "vae" / f"{name}.safetensors"


def load(supply: ModelSupply, path: Path) -> list[LoadState]:
    """All states of a load that ends when the file is there, or will not come."""
    with supply.load(path) as states:
        return list(states)


def test_missing_models_have_placeholders_at_once(
    start: Start, folder: Path, server: ModelServer
) -> None:
    server.bytes_per_s = 1
    path_of(folder, "vae").parent.mkdir(parents=True)
    path_of(folder, "vae").write_bytes(b"x" * SIZES["vae"])

    start()

    assert not path_of(folder, "vae").is_symlink()
    for name in ("text", "high", "low"):
        assert is_placeholder(path_of(folder, name))
        assert path_of(folder, name).stat().st_size == SIZES[name]


def test_load_waits_until_the_file_is_complete_and_reports_how_far_it_is(
    start: Start, folder: Path, server: ModelServer
) -> None:
    server.bytes_per_s = 2 * MB
    supply = start()

    states = load(supply, path_of(folder, "text"))

    *waits, last = states
    assert last == LoadState(is_complete=True)
    assert waits
    assert {state.total_bytes for state in waits} == {SIZES["text"]}
    assert path_of(folder, "text").read_bytes() == server.files["/text.safetensors"]


def test_file_that_a_loader_waits_for_gets_the_whole_line(
    start: Start, folder: Path, server: ModelServer
) -> None:
    server.bytes_per_s = 8 * MB
    supply = start()

    load(supply, path_of(folder, "low"))

    assert not is_placeholder(path_of(folder, "low"))
    # What was under way when the loader came.
    assert server.sent_bytes["/high.safetensors"] < SIZES["high"] / 2


def test_models_of_a_job_come_in_its_order(start: Start, folder: Path, server: ModelServer) -> None:
    server.bytes_per_s = 8 * MB
    supply = start()

    supply.begin_job(["low.safetensors", "vae.safetensors"])

    assert wait_until(lambda: not is_placeholder(path_of(folder, "low")))
    assert is_placeholder(path_of(folder, "text"))
    assert is_placeholder(path_of(folder, "high"))


def test_all_models_come_without_a_job(start: Start, folder: Path) -> None:
    start()

    assert wait_until(lambda: not any(is_placeholder(path_of(folder, name)) for name in SIZES))


def test_download_that_fails_fails_its_load_alone_and_is_tried_again_for_the_next(
    start: Start, folder: Path, server: ModelServer
) -> None:
    server.faults["/text.safetensors"] = Faults(always_status=404)
    supply = start()

    failed = load(supply, path_of(folder, "text"))[-1]

    assert not failed.is_complete
    assert "text.safetensors" in failed.failure
    assert load(supply, path_of(folder, "vae"))[-1].is_complete
    server.faults["/text.safetensors"] = Faults()
    assert load(supply, path_of(folder, "text"))[-1].is_complete


def test_model_for_which_the_disk_takes_no_file_is_named_until_it_does(
    start: Start, folder: Path
) -> None:
    path_of(folder, "vae").mkdir(parents=True)

    supply = start()

    assert supply.unplaced == {"vae.safetensors": "Is a directory"}
    path_of(folder, "vae").rmdir()
    supply.place(["vae.safetensors"])
    assert supply.unplaced == {}
    assert path_of(folder, "vae").exists()


def test_placeholder_that_no_manifest_names_is_no_model(start: Start, folder: Path) -> None:
    supply = start()
    stranger = path_of(folder, "stranger")
    stranger.symlink_to(Parts(stranger).placeholder.name)

    state = load(supply, stranger)[-1]

    assert not state.is_complete
    assert "no manifest of this worker names it" in state.failure


def test_copy_of_a_placeholder_that_no_manifest_names_is_no_model(
    start: Start, folder: Path
) -> None:
    supply = start()
    stranger = path_of(folder, "stranger")
    stranger.write_bytes(bytes(1000))

    state = load(supply, stranger)[-1]

    assert not state.is_complete
    assert "the copy of one" in state.failure


def test_copy_of_a_placeholder_is_replaced_by_the_model(
    start: Start, folder: Path, server: ModelServer
) -> None:
    path = path_of(folder, "vae")
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(SIZES["vae"]))

    assert load(start(), path)[-1].is_complete

    assert path.read_bytes() == server.files["/vae.safetensors"]


def test_folder_that_cannot_be_made_fails_the_loads_and_not_the_worker(
    start: Start, folder: Path
) -> None:
    folder.parent.joinpath(folder.name).touch()

    (state,) = load(start(), path_of(folder, "vae"))[-1:]

    assert "cannot be written" in state.failure


def test_url_that_a_request_names_comes_also_before_the_start(
    folder: Path, server: ModelServer
) -> None:
    local = Allowed.parse("127.0.0.1")
    settings = Settings(models_dirs=(folder,), comfyui_dir=folder / "no", outbound_allow=local)
    listed = ModelFile(
        name="low.safetensors", folder="vae", sources=(f"{server.url}/low.safetensors",)
    )
    supply = ModelSupply(settings, [Manifest(name="test", files=(listed,))])
    url = ModelUrl(
        url=f"{server.url}/vae.safetensors", folder="vae", name="from_url/1/vae.safetensors"
    )

    supply.add_urls([url])
    assert is_placeholder(folder / "vae" / url.name)
    supply.begin_job([url.name])
    supply.start()

    assert load(supply, folder / "vae" / url.name)[-1].is_complete
    supply.stop()


def test_file_of_the_user_is_complete(start: Start, folder: Path) -> None:
    supply = start()
    own = path_of(folder, "own")
    own.write_bytes(b"x")

    assert load(supply, own) == [LoadState(is_complete=True)]


def test_end_of_the_worker_ends_a_wait(start: Start, folder: Path, server: ModelServer) -> None:
    server.bytes_per_s = 1000
    supply = start()
    with supply.load(path_of(folder, "high")) as states:
        assert not next(states).is_complete
        threading.Thread(target=supply.stop).start()

        assert list(states)[-1].failure == "high.safetensors is not complete, and the worker ends"


def test_next_worker_goes_on_where_one_was_killed(
    start: Start, folder: Path, server: ModelServer
) -> None:
    server.bytes_per_s = 4 * MB
    first = start()
    assert wait_until(lambda: server.sent_bytes["/high.safetensors"] > 2 * MB)
    first.stop()
    assert is_placeholder(path_of(folder, "high"))
    server.bytes_per_s = None

    second = start()

    assert load(second, path_of(folder, "high"))[-1].is_complete
    assert path_of(folder, "high").read_bytes() == server.files["/high.safetensors"]
    assert server.sent_bytes["/high.safetensors"] < 2 * SIZES["high"]


class TestSmallDisk:
    """A disk of 0.90 of the models: what was loaded leaves it for what is needed next."""

    @pytest.fixture(autouse=True)
    def disk(self, folder: Path) -> Iterator[None]:
        with small_disk(folder, sum(SIZES.values()) * 90 // 100):
            yield

    def test_job_loads_all_its_models(self, start: Start, folder: Path) -> None:
        supply = start()
        names = [f"{name}.safetensors" for name in SIZES]

        job = supply.begin_job(names)

        for name in SIZES:
            assert load(supply, path_of(folder, name))[-1].is_complete
        supply.end_job(job)

    def test_next_job_has_what_it_needs_brought_again(self, start: Start, folder: Path) -> None:
        supply = start()
        for _ in range(2):
            job = supply.begin_job([f"{name}.safetensors" for name in SIZES])
            for name in SIZES:
                assert load(supply, path_of(folder, name))[-1].is_complete
            supply.end_job(job)

    def test_nothing_is_removed_before_a_job_needs_the_room(
        self, start: Start, folder: Path
    ) -> None:
        start()

        assert wait_until(lambda: not is_placeholder(path_of(folder, "high")))
        assert not is_placeholder(path_of(folder, "vae"))
        assert not is_placeholder(path_of(folder, "text"))
        assert is_placeholder(path_of(folder, "low"))

    def test_model_that_is_being_loaded_stays(self, start: Start, folder: Path) -> None:
        supply = start()
        supply.begin_job([f"{name}.safetensors" for name in SIZES])
        with ExitStack() as loads:
            for name in ("vae", "text", "high"):
                states = loads.enter_context(supply.load(path_of(folder, name)))
                assert list(states)[-1].is_complete
            low = loads.enter_context(supply.load(path_of(folder, "low")))
            assert not next(low).is_complete

            assert not any(is_placeholder(path_of(folder, name)) for name in ("text", "high"))

    def test_model_that_is_larger_than_the_disk_fails_its_job_with_the_reason(
        self, start: Start, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("runtime.models.schedule._RELEASED_WITHIN_S", 0.5)
        supply = start(**SIZES, huge=100 * MB)

        state = load(supply, path_of(folder, "huge"))[-1]

        assert "has no room for huge.safetensors, 100000000 bytes" in state.failure
        assert load(supply, path_of(folder, "vae"))[-1].is_complete

    def test_room_is_made_for_a_model_by_url_whose_size_only_its_source_knows(
        self, start: Start, folder: Path, server: ModelServer
    ) -> None:
        supply = start(**{name: size for name, size in SIZES.items() if name != "low"})
        for name in ("vae", "text", "high"):
            assert load(supply, path_of(folder, name))[-1].is_complete
        url = f"{server.url}/low.safetensors"
        model = ModelUrl(url=url, folder="vae", name="from_url/1/low.safetensors")

        supply.add_urls([model])
        supply.begin_job([model.name])

        assert load(supply, folder / "vae" / model.name)[-1] == LoadState(is_complete=True)
        assert is_placeholder(path_of(folder, "text"))
        assert not is_placeholder(path_of(folder, "high"))

    def test_file_whose_size_only_its_source_knows_waits_for_room(
        self, start: Start, folder: Path
    ) -> None:
        supply = start(**SIZES | {"low": None})
        with ExitStack() as low, ExitStack() as others:
            for name in ("vae", "text", "high"):
                states = others.enter_context(supply.load(path_of(folder, name)))
                assert list(states)[-1].is_complete
            waits = low.enter_context(supply.load(path_of(folder, "low")))
            assert any(state.total_bytes == SIZES["low"] for state in waits)

            others.close()

            assert list(waits)[-1].is_complete

    def test_file_that_proves_larger_than_the_disk_fails_its_job_with_the_reason(
        self, start: Start, folder: Path, server: ModelServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("runtime.models.schedule._RELEASED_WITHIN_S", 0.5)
        server.add("huge.safetensors", bytes(100 * MB))
        supply = start(**SIZES, huge=None)

        state = load(supply, path_of(folder, "huge"))[-1]

        assert "has no room for huge.safetensors, 100000000 bytes" in state.failure
        assert len([path for path, _ in server.requests if path == "/huge.safetensors"]) == 1
        assert load(supply, path_of(folder, "vae"))[-1].is_complete
