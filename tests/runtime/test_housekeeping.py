"""What housekeeping removes from ComfyUI's folders, on real files."""

import os
import shutil
import time
from pathlib import Path

import pytest

from handler import deliveries
from handler.artifacts import MARKER
from handler.settings import Settings
from runtime.worker import housekeeping
from runtime.worker.housekeeping import clean, find_due

DAY_S = 86_400.0
# More than any disk has, so that it counts as nearly full.
ALWAYS_MB = 10**12


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    for name in ("output", "input", "temp"):
        (tmp_path / "data" / name).mkdir(parents=True)
    (tmp_path / "worker").mkdir()
    return make_settings(tmp_path)


def make_settings(folder: Path, **variables: object) -> Settings:
    environ = {
        "COMFYUI_DATA_DIR": folder / "data",
        "WORKER_DIR": folder / "worker",
        # What the installed version does without it is another test's subject.
        "COMFYUI_ARGS": "--cache-classic",
        **variables,
    }
    return Settings.from_env({name: str(value) for name, value in environ.items()})


def nearly_full(settings: Settings, **variables: object) -> Settings:
    return make_settings(settings.comfyui_data.parent, CLEAN_BELOW=ALWAYS_MB, **variables)


def write(path: Path, *, age_s: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * 5000)
    set_age(path, age_s)
    return path


def set_age(path: Path, age_s: float) -> None:
    at = time.time() - age_s
    os.utime(path, (at, at))


def write_job(settings: Settings, name: str, *, age_s: float) -> Path:
    folder = settings.comfyui_data / "output" / name
    write(folder / "a.png", age_s=age_s)
    write(folder / MARKER, age_s=age_s)
    return folder


def deliver(settings: Settings, name: str, *files: str, age_s: float) -> None:
    deliveries.record(settings.worker_dir, name, files)
    set_age(settings.worker_dir / "delivered" / name, age_s)


def paths(removals: list[housekeeping.Removal]) -> list[Path]:
    return [removal.path for removal in removals]


def test_no_file_goes_while_the_disk_has_room(settings: Settings) -> None:
    old = write(settings.comfyui_data / "output" / "old.png", age_s=30 * DAY_S)

    assert clean(settings) == []

    assert old.exists()


def test_part_of_an_input_file_goes_when_its_download_has_ended(settings: Settings) -> None:
    data = settings.comfyui_data / "input"
    left = [write(data / ".fetch-a.part", age_s=400), write(data / "3d/.fetch-b.part", age_s=400)]
    write(data / ".fetch-c.part", age_s=200)
    write(data / "cat.png", age_s=400)

    assert sorted(paths(clean(settings))) == sorted(left)


def test_old_files_of_every_folder_go_oldest_first_when_the_disk_is_nearly_full(
    settings: Settings,
) -> None:
    data = settings.comfyui_data
    old = [
        write(data / "temp" / "preview.png", age_s=5 * DAY_S),
        write_job(settings, "job", age_s=4 * DAY_S),
        write(data / "input" / "in.png", age_s=3 * DAY_S),
        write(data / "output" / "sub" / "a.png", age_s=2 * DAY_S),
    ]
    young = write(data / "output" / "young.png", age_s=DAY_S / 2)

    removed = clean(nearly_full(settings))

    assert paths(removed) == old
    assert [removal.size_bytes > 0 for removal in removed] == [True] * 4
    assert {path.name for path in data.rglob("*")} == {"input", "output", "temp", "young.png"}
    assert young.exists()


def test_removal_ends_when_enough_is_free(settings: Settings) -> None:
    output = settings.comfyui_data / "output"
    files = [output / f"{number}.mp4" for number in range(3)]
    for number, file in enumerate(files):
        allocate(file, 400)
        set_age(file, (9 - number) * DAY_S)
    # Two files are enough, one is not; other programs may use 200 MB meanwhile.
    below_mb = shutil.disk_usage(output).free // 1_000_000 + 600
    settings = make_settings(settings.comfyui_data.parent, CLEAN_BELOW=below_mb)

    planned = find_due(settings)
    removed = clean(settings)

    assert paths(planned) == paths(removed) == files[:2]
    assert files[2].exists()


def allocate(path: Path, size_mb: int) -> None:
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size_mb * 1_000_000)


def test_what_was_used_since_the_oldest_running_job_began_stays(settings: Settings) -> None:
    data = settings.comfyui_data
    before = write(data / "output" / "before.png", age_s=2 * DAY_S)
    written = write(data / "output" / "written.png", age_s=100)
    given = write(data / "input" / "given.png", age_s=2 * DAY_S)
    # The handler touches the inputs of its job, see handler/input_files.py.
    os.utime(given, (time.time() - 100, given.stat().st_mtime))

    removed = clean(nearly_full(settings, CLEAN_OLDER_THAN=0), time.time() - 200)

    assert paths(removed) == [before]
    assert written.exists()
    assert given.exists()


def test_links_are_neither_followed_nor_removed(settings: Settings, tmp_path: Path) -> None:
    outside = write(tmp_path / "models" / "model.bin", age_s=9 * DAY_S)
    output = settings.comfyui_data / "output"
    (output / "folder").symlink_to(outside.parent)
    (output / "file.bin").symlink_to(outside)
    job = write_job(settings, "job", age_s=9 * DAY_S)
    (job / "linked").symlink_to(outside.parent)

    removed = clean(nearly_full(settings))

    assert paths(removed) == [job]
    assert outside.exists()
    assert (output / "folder").is_symlink()
    assert (output / "file.bin").is_symlink()


def test_folder_that_itself_is_a_link_is_cleaned(settings: Settings, tmp_path: Path) -> None:
    (settings.comfyui_data / "output").rmdir()
    disk = tmp_path / "disk"
    old = write(disk / "old.png", age_s=2 * DAY_S)
    (settings.comfyui_data / "output").symlink_to(disk)

    clean(nearly_full(settings))

    assert not old.exists()


def test_lock_of_the_output_folder_stays(settings: Settings) -> None:
    lock = write(settings.comfyui_data / "output" / housekeeping.LOCK_NAME, age_s=9 * DAY_S)

    assert clean(nearly_full(settings)) == []

    assert lock.exists()


def test_delivered_job_goes_after_its_time_with_the_files_of_comfyui(settings: Settings) -> None:
    data = settings.comfyui_data
    job = write_job(settings, "job", age_s=9000)
    image = write(data / "output" / "sub" / "a_00001_.png", age_s=9000)
    preview = write(data / "temp" / "p.png", age_s=9000)
    deliver(settings, "job", "output/sub/a_00001_.png", "temp/p.png", age_s=8000)
    later = write_job(settings, "later", age_s=2000)
    deliver(settings, "later", age_s=1000)
    newest = write_job(settings, "newest", age_s=2000)
    deliver(settings, "newest", age_s=900)

    planned = find_due(settings)
    removed = clean(settings)

    assert paths(planned) == paths(removed) == [job, image, preview]
    assert later.exists()
    assert newest.exists()
    assert [entry.folder for entry in deliveries.read_all(settings.worker_dir)] == [
        "later",
        "newest",
    ]
    # The folder that the workflow named is empty now.
    assert not image.parent.exists()
    assert clean(settings) == []


def test_cache_of_many_prompts_keeps_the_files_of_comfyui(settings: Settings) -> None:
    data = settings.comfyui_data
    job = write_job(settings, "job", age_s=9000)
    image = write(data / "output" / "a_00001_.png", age_s=9000)
    deliver(settings, "job", "output/a_00001_.png", age_s=8000)
    deliver(settings, "newest", age_s=900)

    removed = clean(make_settings(data.parent, COMFYUI_ARGS="--cache-lru 100"))

    assert paths(removed) == [job]
    assert image.exists()


@pytest.mark.parametrize(
    ("main", "arguments", "is_kept"),
    [
        ("cache_type = execution.CacheType.CLASSIC", "", False),
        ("cache_type = execution.CacheType.RAM_PRESSURE", "", True),
        ("cache_type = execution.CacheType.RAM_PRESSURE", "--cache-none", False),
        ("cache_type = execution.CacheType.CLASSIC", "--cache-ram", True),
        ("from another.place import start", "", True),
        ("", "", False),
    ],
)
def test_version_of_comfyui_decides_whether_its_cache_has_many_prompts(
    main: str, arguments: str, *, is_kept: bool, tmp_path: Path
) -> None:
    (tmp_path / "main.py").write_text(f"def prompt_worker():\n    {main}\n" if main else "")

    settings = make_settings(tmp_path, COMFYUI_DIR=tmp_path, COMFYUI_ARGS=f"--cpu {arguments}")

    assert housekeeping.caches_many_prompts(settings) is is_kept


def test_newest_delivered_job_stays_with_what_the_cache_names(settings: Settings) -> None:
    shared = write(settings.comfyui_data / "output" / "a_00001_.png", age_s=9000)
    first = write_job(settings, "first", age_s=9000)
    second = write_job(settings, "second", age_s=9000)
    deliver(settings, "first", "output/a_00001_.png", age_s=8000)
    deliver(settings, "second", "output/a_00001_.png", age_s=7000)

    removed = clean(settings)

    assert paths(removed) == [first]
    assert second.exists()
    assert shared.exists()


def test_delivered_job_whose_id_is_used_again_stays(settings: Settings) -> None:
    job = write_job(settings, "job", age_s=8000)
    rewritten = write(settings.comfyui_data / "output" / "fixed.png", age_s=100)
    deliver(settings, "job", "output/fixed.png", age_s=8000)
    deliver(settings, "newest", age_s=900)
    set_age(job / MARKER, 100)

    assert clean(settings) == []

    assert job.exists()
    assert rewritten.exists()


def test_number_of_delivered_jobs_is_limited(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "NEWEST_JOBS", 2)
    folders = [write_job(settings, f"job-{n}", age_s=100) for n in range(5)]
    for number in range(5):
        deliver(settings, f"job-{number}", age_s=50 - number)

    assert paths(clean(settings)) == folders[:3]


def test_delivered_jobs_go_at_once_when_the_disk_is_nearly_full(settings: Settings) -> None:
    folders = [write_job(settings, name, age_s=100) for name in ("first", "second")]
    deliver(settings, "first", age_s=50)
    deliver(settings, "second", age_s=40)

    assert paths(clean(nearly_full(settings))) == folders[:1]


@pytest.mark.parametrize("file", ["output/../../secret", "etc/passwd", "output//etc/hostname"])
def test_no_entry_of_a_delivered_job_reaches_outside(settings: Settings, file: str) -> None:
    secret = write(settings.comfyui_data.parent / "secret", age_s=9000)
    deliver(settings, "job", file, age_s=8000)
    deliver(settings, "newest", age_s=900)

    clean(settings)

    assert secret.exists()


def test_entry_that_a_full_disk_has_cut_counts_as_one_without_files(settings: Settings) -> None:
    job = write_job(settings, "job", age_s=9000)
    deliver(settings, "job", age_s=8000)
    (settings.worker_dir / "delivered" / "job").write_text('["outp')
    set_age(settings.worker_dir / "delivered" / "job", 8000)
    deliver(settings, "newest", age_s=900)

    assert paths(clean(settings)) == [job]
