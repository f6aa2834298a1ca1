"""Placeholders: what they look like to ComfyUI, to readers that do not ask, and after a removal."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from handler.model_folders import find_models, kinds_in
from handler.settings import Settings
from runtime.models import header
from runtime.models.manifest import ModelFile
from runtime.models.part_file import Origin, PartFile
from runtime.models.parts import Parts, is_complete, is_placeholder
from runtime.models.placeholders import put_placeholder, remove_model, used_bytes
from runtime.process.file_lock import try_file_lock, unlock_file
from runtime.process.open_files import open_files
from tests.processes import wait_until

SIZE = 5_000_000
MODEL = ModelFile(name="a.safetensors", folder="vae", sources=("https://x",), size_bytes=SIZE)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "vae" / "a.safetensors"


def test_placeholder_has_the_size_of_the_model_and_takes_no_space(target: Path) -> None:
    put_placeholder(MODEL, target)

    assert target.stat().st_size == SIZE
    assert used_bytes(target) == 0
    assert find_models(["a.safetensors"], kinds_in(target.parent.parent)) == [target]


def test_placeholder_is_not_taken_for_the_model(target: Path) -> None:
    put_placeholder(MODEL, target)

    assert is_placeholder(target)
    assert not is_complete(MODEL, target)


def test_link_whose_placeholder_is_gone_gets_another(target: Path) -> None:
    put_placeholder(MODEL, target)
    Parts(target).placeholder.unlink()

    put_placeholder(MODEL, target)

    assert is_placeholder(target)
    assert target.stat().st_size == SIZE


def test_link_that_leads_nowhere_becomes_a_placeholder(target: Path) -> None:
    target.parent.mkdir()
    target.symlink_to("/nowhere/a.safetensors")

    put_placeholder(MODEL, target)

    assert is_placeholder(target)
    assert sorted(path.name for path in target.parent.iterdir()) == [
        target.name,
        Parts(target).placeholder.name,
    ]


def test_link_that_leads_nowhere_stays_while_another_process_downloads_its_model(
    target: Path,
) -> None:
    target.parent.mkdir()
    target.symlink_to("/nowhere/a.safetensors")
    lock = try_file_lock(Parts(target).lock)
    assert lock is not None

    put_placeholder(MODEL, target)

    assert not is_placeholder(target)
    unlock_file(Parts(target).lock, lock)


@pytest.mark.parametrize("size", [SIZE, 10])
def test_file_that_is_there_stays(target: Path, size: int) -> None:
    target.parent.mkdir()
    target.write_bytes(b"x" * size)

    put_placeholder(MODEL, target)

    assert not target.is_symlink()
    assert target.stat().st_size == size


@pytest.fixture(params=["auto", "never"])
def copied(request: pytest.FixtureRequest, target: Path, tmp_path: Path) -> Path:
    """A model in a copy of the folder, in which links were followed. rsync writes all zeros."""
    put_placeholder(MODEL, target)
    copy = tmp_path / "copy"
    copy.mkdir()
    line = ["cp", "-rL", f"--sparse={request.param}", str(target.parent), str(copy)]
    subprocess.run(line, check=True)
    return copy / target.parent.name / target.name


def test_copy_of_a_placeholder_is_no_model(copied: Path) -> None:
    assert copied.stat().st_size == SIZE
    assert not copied.is_symlink()

    assert not is_complete(MODEL, copied)


def test_copy_of_a_placeholder_becomes_a_placeholder(copied: Path) -> None:
    put_placeholder(MODEL, copied)

    assert is_placeholder(copied)
    assert copied.stat().st_size == SIZE
    assert used_bytes(copied) == 0


def test_copy_that_another_process_replaces_by_the_model_stays(copied: Path) -> None:
    with Parts(copied).lock.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        put_placeholder(MODEL, copied)

    assert not is_placeholder(copied)


def test_file_of_another_format_may_begin_with_zeros(target: Path) -> None:
    target = target.with_suffix(".npy")
    target.parent.mkdir()
    target.write_bytes(bytes(SIZE))

    assert is_complete(MODEL, target)


def test_model_that_replaces_a_copy_of_its_placeholder_is_complete(copied: Path) -> None:
    assert not is_complete(MODEL, copied)

    copied.write_bytes(b"x" * SIZE)

    assert is_complete(MODEL, copied)


def test_model_that_is_written_within_one_tick_of_the_clock_is_complete(copied: Path) -> None:
    before = copied.stat()
    assert not is_complete(MODEL, copied)

    copied.write_bytes(b"x" * SIZE)
    os.utime(copied, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert is_complete(MODEL, copied)


def test_header_of_each_of_many_models_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def beginning(path: Path) -> bytes:
        read.append(path)
        return b"x"

    monkeypatch.setattr(header, "_beginning", beginning)
    models = [tmp_path / f"{number}.safetensors" for number in range(3000)]
    for model in models:
        model.touch()

    for model in models * 2:
        assert not header.is_copied_placeholder(model)

    assert read == models


def test_look_at_a_header_is_no_use_of_the_model(target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(b"x" * SIZE)
    os.utime(target, (0, 1))

    assert is_complete(MODEL, target)

    assert target.stat().st_atime == 0


def test_removed_model_is_a_placeholder_whose_space_is_free(target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(os.urandom(SIZE))

    assert remove_model(MODEL, target)

    assert is_placeholder(target)
    assert used_bytes(target) == 0
    assert target.stat().st_size == SIZE


def test_removal_takes_what_was_downloaded_so_far(target: Path) -> None:
    put_placeholder(MODEL, target)
    Parts(target).part.write_bytes(os.urandom(SIZE))

    assert remove_model(MODEL, target)

    assert used_bytes(target) == 0
    assert not Parts(target).lock.exists()


def test_model_that_a_loader_holds_is_not_removed(target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(os.urandom(SIZE))

    with target.open("rb") as loader:
        fcntl.flock(loader, fcntl.LOCK_SH)
        assert not remove_model(MODEL, target)

    assert is_complete(MODEL, target)


@pytest.fixture
def nfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks as NFS gives them: flock(2). The machines of the tests have no such mount."""
    flock = fcntl.flock

    def flock_of_nfs(file: Any, operation: int) -> None:
        descriptor = file if isinstance(file, int) else file.fileno()
        mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        if operation & fcntl.LOCK_EX and mode == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock_of_nfs)


@pytest.mark.usefixtures("nfs")
def test_model_on_nfs_is_removed_unless_a_loader_holds_it(target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(os.urandom(SIZE))

    with target.open("rb") as loader:
        fcntl.flock(loader, fcntl.LOCK_SH)
        assert not remove_model(MODEL, target)

    assert remove_model(MODEL, target)
    assert is_placeholder(target)


def test_model_that_may_only_be_read_is_removed(target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(os.urandom(SIZE))
    target.chmod(0o444)

    assert remove_model(MODEL, target)


def test_model_that_just_got_its_name_is_not_removed(target: Path) -> None:
    put_placeholder(MODEL, target)
    part = PartFile(
        Parts(target), Origin(size_bytes=SIZE, sha256=None, source="https://x", version=None)
    )

    part.finish(target)
    assert not remove_model(MODEL, target)
    part.close()

    assert remove_model(MODEL, target)
    assert is_placeholder(target)
    assert target.exists()


def test_part_that_another_process_downloads_is_not_removed(target: Path) -> None:
    put_placeholder(MODEL, target)
    parts = Parts(target)
    parts.part.write_bytes(os.urandom(SIZE))

    with parts.lock.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert not remove_model(MODEL, target)

    assert parts.part.exists()


@pytest.mark.parametrize("mode", ["mapped", "open"])
def test_file_that_another_process_has_mapped_or_open_is_found(target: Path, mode: str) -> None:
    target.parent.mkdir()
    target.write_bytes(os.urandom(SIZE))
    program = (
        "import mmap, sys\n"
        "file = open(sys.argv[1], 'rb')\n"
        "mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)\n"
        "{'mapped': file, 'open': mapped}[sys.argv[2]].close()\n"
        "sys.stdin.read()\n"
    )
    line = [sys.executable, "-c", program, str(target), mode]
    with subprocess.Popen(line, stdin=subprocess.PIPE) as other:
        assert wait_until(lambda: open_files([target]) == {target})
        other.communicate()

    assert open_files([target]) == set()


@pytest.mark.comfyui
@pytest.mark.slow
@pytest.mark.parametrize("reader", ["safetensors.torch.load_file(path)", "torch.load(path)"])
def test_reader_that_does_not_ask_fails_loudly(target: Path, reader: str) -> None:
    put_placeholder(MODEL, target)
    program = f"import safetensors.torch, sys, torch; path = sys.argv[1]; {reader}"
    python = Settings.from_env(os.environ).comfyui_interpreter

    process = subprocess.run(
        [python, "-c", program, target], capture_output=True, text=True, check=False
    )

    assert process.returncode == 1
    assert "Error" in process.stderr.splitlines()[-1]
