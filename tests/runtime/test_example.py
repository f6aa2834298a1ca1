"""What `make run` does once ComfyUI is installed: events in, files and responses in a folder."""

import argparse
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import av
import boto3
import pytest
from botocore.config import Config

from events.contract import response_problems
from handler.settings import Settings
from runtime import local_s3 as module
from runtime.commands import example
from runtime.commands.example import fetch_outputs
from runtime.local_s3 import LocalS3, local_s3
from tests import workflows
from tests.workflows import event

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalS3]:
    with local_s3(tmp_path_factory.mktemp("s3")) as running:
        yield running


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    example.add_arguments(parser)
    return example.run(parser.parse_args(arguments), Settings.from_env(os.environ))


def link_to(server: LocalS3, key: str, content: bytes) -> str:
    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint_url,
        aws_access_key_id=server.access_key_id,
        aws_secret_access_key=server.secret_access_key,
        region_name=module.REGION,
        config=Config(signature_version="s3v4"),
    )
    client.put_object(Bucket=server.bucket_name, Key=key, Body=content)
    target = {"Bucket": server.bucket_name, "Key": key}
    return str(client.generate_presigned_url("get_object", Params=target, ExpiresIn=60))


def event_file(path: Path, request: object) -> Path:
    path.write_text(json.dumps(request))
    return path


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

    assert capfd.readouterr().err.startswith("example: cannot read")
    assert not (tmp_path / "comfyui").exists()


def test_outputs_are_fetched_into_a_folder_of_the_job(
    server: LocalS3, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film, twin = link_to(server, "one/a.mp4", b"film"), link_to(server, "two/a.mp4", b"twin")
    outputs = [
        {"filename": "a.mp4", "url": film},
        {"filename": "a.mp4", "url": twin},
        {"filename": "note.txt", "text": "no URL"},
    ]

    is_complete = fetch_outputs({"id": "../job 1", "output": outputs}, tmp_path)

    folder = tmp_path / "_job_1"
    shown = capsys.readouterr()
    assert is_complete
    assert (folder / "a.mp4").read_bytes() == b"film"
    assert (folder / "1_a.mp4").read_bytes() == b"twin"
    assert shown.out.splitlines() == [str(folder / "a.mp4"), str(folder / "1_a.mp4")]
    assert "open this video in any player or browser, 4 B:" in shown.err


def test_output_that_cannot_be_fetched_is_named(
    server: LocalS3, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stale = link_to(server, "b.png", b"x").replace("b.png", "c.png")

    is_complete = fetch_outputs(
        {"id": "job", "output": [{"filename": "c.png", "url": stale}]}, tmp_path
    )

    shown = capsys.readouterr()
    assert not is_complete
    assert shown.err == "cannot fetch c.png: HTTPError\n"
    assert shown.out == ""
    assert os.listdir(tmp_path / "job") == []


def test_output_that_was_not_uploaded_is_a_missing_file(tmp_path: Path) -> None:
    outputs = [{"filename": "d.png", "upload_error": "AccessDenied"}]

    assert not fetch_outputs({"id": "job", "output": outputs}, tmp_path)
