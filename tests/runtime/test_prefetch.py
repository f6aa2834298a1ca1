"""Reading model files ahead of ComfyUI: how much memory it takes, and what it leaves alone."""

import mmap
import os
from pathlib import Path

from handler.settings import Settings
from runtime.models.manifest import ModelFile
from runtime.models.placeholders import put_placeholder
from runtime.models.prefetch import Prefetch
from runtime.process.memory import available_bytes
from tests.processes import wait_until

MB = 1024 * 1024


def settings_with(folder: Path, **sizes: int) -> Settings:
    """Settings with models of these sizes in MiB in `folder`, named `a.pt` for `a`."""
    for name, size in sizes.items():
        path = folder / "vae" / f"{name}.pt"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(os.urandom(size * MB))
    return Settings(models_dirs=(folder,), comfyui_dir=folder / "no")


def cached_bytes(path: Path) -> int:
    """How much of the file is in the page cache."""
    import ctypes  # noqa: PLC0415

    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        pages = (ctypes.c_ubyte * (-(-len(mapped) // mmap.PAGESIZE)))()
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(mapped)), pages) == 0
        return sum(page & 1 for page in pages) * mmap.PAGESIZE


def test_no_more_is_read_than_the_memory_has_room_for(tmp_path: Path) -> None:
    settings = settings_with(tmp_path, a=4, b=4)

    reading = Prefetch(["a.pt", "b.pt"], settings, available=lambda: 9 * MB)

    assert wait_until(lambda: not reading.is_reading)
    assert reading.read_bytes <= 6 * MB
    reading.stop()
    assert reading.join(30)


def test_reading_goes_on_when_comfyui_has_loaded_what_was_read(tmp_path: Path) -> None:
    settings = settings_with(tmp_path, a=4, b=4)
    first = tmp_path / "vae" / "a.pt"
    reading = Prefetch(["a.pt", "b.pt"], settings, available=lambda: 9 * MB)
    assert wait_until(lambda: not reading.is_reading)

    reading.note_loaded(first.resolve())

    assert reading.join(30)
    assert reading.read_bytes == 8 * MB


def test_loaded_file_leaves_the_page_cache(tmp_path: Path) -> None:
    settings = settings_with(tmp_path, a=4, b=4)
    first = tmp_path / "vae" / "a.pt"
    with first.open("rb") as file:
        # Only what is on the disk can be dropped.
        os.fsync(file.fileno())
    reading = Prefetch(["a.pt", "b.pt"], settings, available=lambda: 9 * MB)
    assert wait_until(lambda: not reading.is_reading)
    assert cached_bytes(first) == 4 * MB

    reading.note_loaded(first.resolve())

    assert reading.join(30)
    assert cached_bytes(first) == 0


def test_placeholder_is_not_read(tmp_path: Path) -> None:
    file = ModelFile(name="a.pt", folder="vae", sources=("https://x",), size_bytes=4 * MB)
    put_placeholder(file, tmp_path / "vae" / "a.pt")

    reading = Prefetch(["a.pt"], settings_with(tmp_path))

    assert reading.join(30)
    assert reading.read_bytes == 0


def test_file_that_cannot_be_opened_is_left_to_comfyui(tmp_path: Path) -> None:
    settings = settings_with(tmp_path, b=1)
    (tmp_path / "vae" / "a.pt").mkdir()

    reading = Prefetch(["a.pt", "b.pt"], settings)

    assert reading.join(30)
    assert reading.read_bytes == MB


def test_memory_is_what_the_machine_has_where_no_group_limits_it(tmp_path: Path) -> None:
    assert available_bytes(proc(tmp_path, "0::/\n"), tmp_path / "cgroup") == 8000 * 1024


def test_container_of_version_2_limits_the_memory(tmp_path: Path) -> None:
    group = tmp_path / "cgroup"
    write(group, {"memory.max": "5000000", "memory.current": "4000000"})
    write(group, {"memory.stat": "anon 1\ninactive_file 1500000\n"})

    assert available_bytes(proc(tmp_path, "0::/\n"), group) == 2_500_000


def test_group_above_that_of_the_process_counts_too(tmp_path: Path) -> None:
    outer, inner = tmp_path / "cgroup" / "a", tmp_path / "cgroup" / "a" / "b"
    write(outer, {"memory.max": "3000", "memory.current": "1000", "memory.stat": ""})
    write(inner, {"memory.max": "max", "memory.current": "500", "memory.stat": ""})

    assert available_bytes(proc(tmp_path, "0::/a/b\n"), tmp_path / "cgroup") == 2000


def test_container_of_version_1_limits_the_memory(tmp_path: Path) -> None:
    # Docker without a namespace of its own: the path is that of the host.
    group = tmp_path / "cgroup" / "memory"
    write(group, {"memory.limit_in_bytes": "6000", "memory.usage_in_bytes": "1000"})
    write(group, {"memory.stat": "total_inactive_file 10\n"})

    lines = "8:pids:/\n4:memory:/docker/abc\n0::/\n"
    assert available_bytes(proc(tmp_path, lines), tmp_path / "cgroup") == 5010


def test_group_that_is_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    group = tmp_path / "cgroup"
    write(group, {"memory.max": "1000", "memory.current": "4000", "memory.stat": ""})

    assert available_bytes(proc(tmp_path, "0::/\n"), group) == 0


def proc(folder: Path, groups: str) -> Path:
    """A /proc of a machine with 8000 kB, whose process is in these groups."""
    write(folder / "proc", {"meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n"})
    write(folder / "proc" / "self", {"cgroup": groups})
    return folder / "proc"


def write(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
