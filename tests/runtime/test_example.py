"""What `make run` does once ComfyUI is installed: events in, files and responses in a folder."""

import io
import json
from pathlib import Path

import av
import pytest

from events.contract import response_problems
from runtime import cli
from runtime.commands import example
from tests import workflows
from tests.workflows import event

pytestmark = pytest.mark.timeout(300)


def run(*arguments: str) -> int:
    return cli.main(["example", *arguments])


def event_file(path: Path, request: object) -> Path:
    path.write_text(json.dumps(request))
    return path


@pytest.mark.usefixtures("comfyui")
@pytest.mark.slow
def test_first_sample_is_a_video_of_four_seconds_without_a_model(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status = run("--event", str(example.FIRST_VIDEO), "--out", str(tmp_path))

    shown = capfd.readouterr()
    assert status == 0, shown.err
    (line,) = shown.out.splitlines()
    with av.open(io.BytesIO(Path(line).read_bytes()), "r") as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, str(stream.average_rate)) == (640, 360, "16")
        frames = [bytes(frame.planes[0]) for frame in container.decode(stream)]
    assert len(frames) == 64
    assert len(set(frames)) == 64
    response = json.loads((Path(line).parent / "response.json").read_text())
    assert response_problems(response) == []
    assert "warnings" not in response


@pytest.mark.usefixtures("comfyui")
def test_without_an_event_both_samples_run_and_the_last_line_is_a_path(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FIRST_VIDEO", "SMALL_WAN"):
        video = event_file(tmp_path / name, event(workflows.video(), request_id=name))
        monkeypatch.setattr(example, name, video)

    status = run("--out", str(tmp_path / "out"))

    shown = capfd.readouterr()
    assert status == 0, shown.err
    files = [tmp_path / "out" / name / "clip_00001_.mp4" for name in ("FIRST_VIDEO", "SMALL_WAN")]
    assert [path.parent for path in map(Path, shown.out.splitlines())] == [
        file.parent for file in files
    ]
    assert all(Path(line).is_file() for line in shown.out.splitlines())
    steps = ["first video:", "stand-in weights are in place", "second video:"]
    assert sorted(steps, key=shown.err.index) == steps


@pytest.mark.usefixtures("comfyui")
def test_second_sample_does_not_run_after_a_failure(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = event_file(tmp_path / "broken", event(workflows.one("NoSuchNode"), request_id="one"))
    monkeypatch.setattr(example, "FIRST_VIDEO", broken)

    status = run("--out", str(tmp_path))

    shown = capfd.readouterr()
    assert status == 1
    assert shown.out == ""
    assert "second video" not in shown.err
    assert json.loads((tmp_path / "one" / "response.json").read_text())["status"] == "failed"


def test_small_wan_sample_is_the_documented_one_in_another_size() -> None:
    assert workflows.small_wan_sample() == workflows.wan(192, 192, 33, steps=4)


def test_event_that_cannot_be_read_is_refused_before_anything_is_installed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMFYUI_HOME", str(tmp_path / "comfyui"))

    assert run("--event", str(tmp_path / "none.json")) == 1

    assert capfd.readouterr().err.startswith("cannot read")
    assert not (tmp_path / "comfyui").exists()


def test_folder_that_cannot_be_written_is_refused_before_anything_is_installed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMFYUI_HOME", str(tmp_path / "comfyui"))
    file = event_file(tmp_path / "file", event(workflows.one("EmptyImage")))

    assert run("--event", str(file), "--out", str(file)) == 2

    assert capfd.readouterr().err == f"--out {file}: cannot write there: File exists\n"
    assert not (tmp_path / "comfyui").exists()
