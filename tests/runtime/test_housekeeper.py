"""When the worker cleans, and that ComfyUI's history keeps no ended job."""

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import requests

from handler import app, deliveries
from handler.settings import Settings
from handler.worker_protocol import SOCKET_NAME, AnnouncePrompt
from runtime import cli
from runtime.worker import housekeeper
from runtime.worker.housekeeper import FORGET_AFTER_JOBS, Housekeeper
from tests import worker, workflows
from tests.conftest import run, worker_status
from tests.processes import wait_until
from tests.runtime.test_housekeeping import ALWAYS_MB, DAY_S, deliver, set_age, write, write_job

pytestmark = [
    pytest.mark.usefixtures("comfyui"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(housekeeper, "CLEAN_EVERY_S", 0.01)
    for name in ("output", "input", "temp"):
        (tmp_path / "data" / name).mkdir(parents=True)
    (tmp_path / "worker").mkdir()
    monkeypatch.setenv("COMFYUI_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WORKER_DIR", str(tmp_path / "worker"))
    return Settings.from_env(os.environ)


@pytest.fixture
def forgotten() -> list[str]:
    return []


@pytest.fixture
def keeper(settings: Settings, forgotten: list[str]) -> Iterator[Housekeeper]:
    keeper = Housekeeper(settings, forgotten.extend, lambda: None)
    keeper.start()
    yield keeper
    keeper.stop()


def test_delivered_jobs_go_by_themselves(keeper: Housekeeper, settings: Settings) -> None:
    job = write_job(settings, "job", age_s=9000)
    deliver(settings, "newest", age_s=100)
    deliver(settings, "job", age_s=8000)

    assert wait_until(lambda: not job.exists())
    assert wait_until(lambda: len(deliveries.read_all(settings.worker_dir)) == 1)


def test_prompts_of_ended_jobs_are_forgotten_and_no_others(
    keeper: Housekeeper, forgotten: list[str]
) -> None:
    ended, running = keeper.begin_job(), keeper.begin_job()
    ended.prompt_ids += ["a", "b"]
    running.prompt_ids += ["c"]

    keeper.end_job(ended)

    assert wait_until(lambda: forgotten == ["a", "b"])
    assert keeper.running_since() == running.began
    keeper.end_job(running)
    assert wait_until(lambda: forgotten == ["a", "b", "c"])
    assert keeper.running_since() is None


def test_disk_that_stays_nearly_full_is_logged_once(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = replace(settings, clean_below_mb=ALWAYS_MB)
    keeper = Housekeeper(settings, lambda _: None, lambda: None)

    keeper.clean()
    keeper.clean()

    assert capsys.readouterr().err.count("is free, and no more files may be removed") == 1


@pytest.mark.parametrize(("arguments", "dropped"), [("--cache-lru 100", 1), ("--cache-classic", 0)])
def test_cache_of_many_prompts_is_emptied_when_files_went(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, arguments: str, dropped: int
) -> None:
    monkeypatch.setenv("COMFYUI_ARGS", arguments)
    monkeypatch.setenv("CLEAN_BELOW", str(ALWAYS_MB))
    write(settings.comfyui_data / "output" / "old_00001_.png", age_s=2 * DAY_S)
    calls: list[None] = []
    keeper = Housekeeper(Settings.from_env(os.environ), lambda _: None, lambda: calls.append(None))

    keeper.clean()
    write_job(settings, "job", age_s=2 * DAY_S)
    keeper.clean()

    assert len(calls) == dropped


def test_history_of_comfyui_keeps_no_ended_job() -> None:
    responses = [run(workflows.image()) for _ in range(FORGET_AFTER_JOBS)]
    prompts = {r["comfyui_response"]["execution_details"]["prompt_id"] for r in responses}
    url = f"{worker_status().base_url}/history"

    assert all(r["status"] == "completed" for r in responses)
    assert wait_until(lambda: not prompts & set(requests.get(url, timeout=10).json()))


def test_history_of_a_job_that_runs_is_kept() -> None:
    path = Settings.from_env(os.environ).worker_dir / SOCKET_NAME
    first = run(workflows.image())
    client = next(iter(app._connections.values())).comfyui
    assert client is not None
    url = f"{worker_status().base_url}/history"
    with closing(worker.connect(path)) as connection:
        worker.wake(connection)
        prompt = "0a1b2c3d-0000-4000-8000-000000000001"
        worker.send(connection, AnnouncePrompt, prompt_id=prompt)
        client.submit(workflows.image(), prompt)
        for _ in range(FORGET_AFTER_JOBS):
            last = run(workflows.image())
        ended = first["comfyui_response"]["execution_details"]["prompt_id"]
        assert wait_until(lambda: ended not in requests.get(url, timeout=10).json())
        assert last["status"] == "completed"

        assert prompt in requests.get(url, timeout=10).json()

        worker.end_job(connection)
    assert wait_until(lambda: prompt not in requests.get(url, timeout=10).json())


def test_clean_lists_and_then_removes(
    settings: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLEAN_BELOW", str(ALWAYS_MB))
    old = write(settings.comfyui_data / "output" / "old.png", age_s=2 * DAY_S)

    assert cli.main(["clean", "--dry-run"]) == 0
    assert f"{old}  not used for 86400 s (CLEAN_OLDER_THAN)" in capsys.readouterr().out
    assert old.exists()

    assert cli.main(["clean"]) == 0
    assert str(old) in capsys.readouterr().out
    assert not old.exists()

    assert cli.main(["clean"]) == 0
    assert capsys.readouterr().out.strip() == "0.0 MB in 0 files and folders removed"


def test_clean_spares_what_a_job_of_the_running_worker_uses(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLEAN_BELOW", str(ALWAYS_MB))
    monkeypatch.setenv("CLEAN_OLDER_THAN", "0")
    folders = worker_status().folders
    before = write(folders["output"] / "before.png", age_s=60)
    path = Settings.from_env(os.environ).worker_dir / SOCKET_NAME
    with closing(worker.connect(path)) as connection:
        worker.wake(connection)
        used = write(folders["output"] / "used.png")

        assert cli.main(["clean", "--dry-run"]) == 0

        listed = capsys.readouterr().out
        assert str(before) in listed
        assert str(used) not in listed
        worker.end_job(connection)
    set_age(used, 1)
    assert cli.main(["clean", "--dry-run"]) == 0
    assert str(used) in capsys.readouterr().out
    before.unlink()
    used.unlink()
