"""`provision` brings what a manifest names, or says why not with a status of its own."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from handler.settings import PROJECT, Settings
from runtime import cli
from runtime.models import download, files_in_place, space
from runtime.models.errors import DownloadError
from runtime.models.patience import Patience
from runtime.worker.benchmark import benchmark_workflow
from tests.aws import moto_server
from tests.model_server import Faults, ModelServer, model_server
from tests.processes import wait_until
from tests.workflows import image

pytestmark = pytest.mark.slow

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ALL = -1
IMPATIENT = Patience(tries=2, first_pause_s=0.01)


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server() as server:
        yield server


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """MODELS_DIR, an empty folder; sources that fail are left after a moment."""
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setenv("MODELS_DIR", str(folder))
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("WORKER_DIR", str(tmp_path / "worker"))
    monkeypatch.setattr(download, "Patience", lambda: IMPATIENT)
    return folder


def manifest(folder: Path, *files: dict[str, Any]) -> str:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"name": "mine", "files": list(files)}))
    return str(path)


def entry(*sources: str, **fields: Any) -> dict[str, Any]:
    return {
        "file": "a.safetensors",
        "folder": "vae",
        "size": len(CONTENT),
        "sha256": SHA256,
        "sources": list(sources),
        **fields,
    }


def test_models_of_a_manifest_come_into_their_folders(
    server: ModelServer, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = server.add("a", CONTENT)
    second = entry(url, file="sub/b.safetensors", folder="loras")

    assert cli.main(["provision", manifest(tmp_path, entry(url), second)]) == 0

    assert (models / "vae" / "a.safetensors").read_bytes() == CONTENT
    assert (models / "loras" / "sub" / "b.safetensors").read_bytes() == CONTENT
    shown = capsys.readouterr().err
    assert "models: vae/a.safetensors is there, 0.00 GB\n" in shown
    assert "models: 2 files, 0.00 GB, are in place after" in shown


def test_second_run_asks_for_nothing(server: ModelServer, models: Path, tmp_path: Path) -> None:
    path = manifest(tmp_path, entry(server.add("a", CONTENT)))
    assert cli.main(["provision", path]) == 0
    server.requests.clear()

    assert cli.main(["provision", path]) == 0

    assert server.requests == []


def test_model_of_another_root_is_not_downloaded_again(
    server: ModelServer, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = tmp_path / "mount" / "vae"
    mount.mkdir(parents=True)
    (mount / "a.safetensors").write_bytes(CONTENT)
    monkeypatch.setenv("MODELS_DIR", f"{models}:{mount.parent}")

    assert cli.main(["provision", manifest(tmp_path, entry(server.add("a", CONTENT)))]) == 0

    assert list(models.iterdir()) == []


@pytest.mark.parametrize(
    ("faults", "changed", "status"),
    [
        (Faults(wrong_answers=ALL), {}, 11),
        (Faults(always_status=403), {}, 12),
        (Faults(always_status=404), {}, 13),
        (Faults(cuts=ALL), {}, 14),
        (Faults(truncated_to=1000), {}, 14),
        (Faults(always_status=500), {}, 16),
        (Faults(), {"size": 7}, 17),
        (Faults(etag_changes=True), {}, 18),
    ],
    ids=str,
)
def test_each_failure_has_its_exit_status(
    faults: Faults,
    changed: dict[str, Any],
    status: int,
    server: ModelServer,
    models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = entry(server.add("good", CONTENT), file="good.safetensors")
    bad = entry(server.add("a", CONTENT, faults), **changed)

    assert cli.main(["provision", manifest(tmp_path, bad, good)]) == status

    assert not (models / "vae" / "a.safetensors").exists()
    # One file's failure stops no other.
    assert (models / "vae" / "good.safetensors").read_bytes() == CONTENT
    shown = capsys.readouterr().err
    assert "models: vae/a.safetensors: http://127.0.0.1:" in shown
    assert "Traceback" not in shown


def test_source_that_drips_has_its_exit_status(
    server: ModelServer, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "Patience", lambda: replace(IMPATIENT, window_s=0.5))
    url = server.add("a", CONTENT, Faults(dripping_answers=ALL))

    assert cli.main(["provision", manifest(tmp_path, entry(url))]) == 15


def test_exit_statuses_are_documented_and_differ() -> None:
    text = (PROJECT / "docs" / "models.md").read_text()
    kinds = DownloadError.__subclasses__()
    statuses = [kind.exit_status for kind in kinds]

    assert len(set(statuses)) == len(kinds)
    assert all(f"| {kind.exit_status} | `{kind.__name__}` |" in text for kind in kinds)


def test_models_that_do_not_fit_are_not_begun(
    server: ModelServer,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(space, "RESERVE_BYTES", 10**18)

    assert cli.main(["provision", manifest(tmp_path, entry(server.add("a", CONTENT)))]) == 10

    assert "do not fit into the 0.0 GB that are free for them" in capsys.readouterr().err
    assert server.requests == []
    assert list(models.iterdir()) == []


def test_folder_that_cannot_be_written_is_an_error(
    server: ModelServer, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (models / "vae").touch()

    assert cli.main(["provision", manifest(tmp_path, entry(server.add("a", CONTENT)))]) == 19

    assert "cannot be written" in capsys.readouterr().err


def test_full_disk_is_an_error_of_its_own(server: ModelServer, tmp_path: Path) -> None:
    """A file system that is really full: 2 MB in memory."""
    url = server.add("a", CONTENT * 4)
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a file system")
    path = manifest(tmp_path, entry(url, size=4 * len(CONTENT), sha256="0" * 64))
    try:
        run = subprocess.run(
            [sys.executable, "-c", NO_RESERVE, "provision", path],
            env={**os.environ, "MODELS_DIR": str(small)},
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 10, run.stderr
        assert "no space is left for it" in run.stderr
        assert not (small / "vae" / "a.safetensors").exists()
    finally:
        subprocess.run(["umount", str(small)], check=True)


# The check before the first byte is left out: here, the disk fills during the download.
NO_RESERVE = """
import sys
from runtime import cli
from runtime.commands import provision
provision.check_space = lambda files: None
sys.exit(cli.main(sys.argv[1:]))
"""


def test_log_says_how_far_a_long_download_is(
    server: ModelServer,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("runtime.models.download_progress._LINE_EVERY_S", 0.2)
    server.bytes_per_s = 1_000_000

    assert cli.main(["provision", manifest(tmp_path, entry(server.add("a", CONTENT)))]) == 0

    assert "models: 0.00 of 0.00 GB, 1 MB/s" in capsys.readouterr().err


def test_two_commands_on_one_folder_download_once(
    server: ModelServer, models: Path, tmp_path: Path
) -> None:
    server.bytes_per_s = 200_000
    path = manifest(tmp_path, entry(server.add("a", CONTENT)))
    line = [sys.executable, "-m", "runtime", "provision", path]
    run = {"cwd": PROJECT, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(line, **run) as first:  # type: ignore[call-overload]
        wait_until(lambda: server.sent_bytes["/a"] > 100_000)
        with subprocess.Popen(line, **run) as second:  # type: ignore[call-overload]
            said = second.communicate(timeout=60)[1]
        first.communicate(timeout=60)

    assert (first.returncode, second.returncode) == (0, 0)
    assert "is being downloaded by another process: waiting for it" in said
    assert server.sent_bytes["/a"] <= len(CONTENT) + 1


def test_verify_finds_a_wrong_file_of_the_right_size_and_leaves_it_there(
    server: ModelServer, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = models / "vae" / "a.safetensors"
    wrong.parent.mkdir()
    wrong.write_bytes(b"x" * len(CONTENT))
    right = entry(server.add("right", CONTENT), file="right.safetensors")
    (models / "vae" / "right.safetensors").write_bytes(CONTENT)
    missing = entry(server.add("missing", CONTENT), file="missing.safetensors")
    path = manifest(tmp_path, entry(server.add("a", CONTENT)), right, missing)
    assert cli.main(["provision", path]) == 0
    (models / "vae" / "missing.safetensors").unlink()
    server.requests.clear()

    assert cli.main(["provision", "--verify", path]) == 21

    assert wrong.read_bytes() == b"x" * len(CONTENT)
    assert (models / "vae" / "missing.safetensors").read_bytes() == CONTENT
    assert {name for name, _ in server.requests} == {"/missing"}
    shown = capsys.readouterr().err
    digest = hashlib.sha256(wrong.read_bytes()).hexdigest()
    assert f"models: vae/a.safetensors: {wrong} has the SHA-256 {digest}" in shown
    assert f"the manifest says {SHA256}; delete it and run provision again" in shown
    assert "models: files verified: 2, not right: 1" in shown


def test_verify_accepts_right_files_and_names_those_without_a_hash(
    server: ModelServer, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = server.add("a", CONTENT)
    plain = {"file": "plain.safetensors", "folder": "vae", "sources": [url]}
    path = manifest(tmp_path, entry(url), plain)
    assert cli.main(["provision", path]) == 0

    assert cli.main(["provision", "--verify", path]) == 0

    shown = capsys.readouterr().err
    assert "models: vae/plain.safetensors has no sha256 in its manifest: not verified" in shown
    assert "models: files verified: 1, not right: 0" in shown


def test_verify_reports_a_file_that_cannot_be_read(
    server: ModelServer,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = manifest(tmp_path, entry(server.add("a", CONTENT)))
    assert cli.main(["provision", path]) == 0
    real_open = Path.open

    def broken(self: Path, *args: Any, **options: Any) -> Any:
        if self.suffix == ".safetensors":
            raise OSError(errno.EIO, "Input/output error")
        return real_open(self, *args, **options)

    monkeypatch.setattr(Path, "open", broken)

    assert cli.main(["provision", "--verify", path]) == 21

    assert "cannot be read: Input/output error" in capsys.readouterr().err


def test_log_says_how_far_a_long_verification_is(
    server: ModelServer,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = manifest(tmp_path, entry(server.add("a", CONTENT)))
    assert cli.main(["provision", path]) == 0
    (models / "vae" / "a.safetensors").unlink()
    # A disk that is slow to answer: the hash goes on when the line was shown.
    shown = threading.Event()
    os.mkfifo(models / "vae" / "a.safetensors")

    def write() -> None:
        with (models / "vae" / "a.safetensors").open("wb") as pipe:
            pipe.write(CONTENT[:500_000])
            shown.wait()
            pipe.write(CONTENT[500_000:])

    def log(text: str) -> None:
        if "GB, " in text:
            shown.set()

    monkeypatch.setattr(files_in_place, "is_complete", lambda file, target: True)
    monkeypatch.setattr("runtime.models.download_progress._LINE_EVERY_S", 0.0)
    monkeypatch.setattr("runtime.models.download_progress.log", log)
    monkeypatch.setattr("runtime.commands.provision._download", lambda files, settings: [])
    writer = threading.Thread(target=write, daemon=True)
    writer.start()

    assert cli.main(["provision", "--verify", path]) == 0

    assert shown.is_set()


def test_verify_leaves_nothing_to_the_worker(models: Path) -> None:
    with pytest.raises(SystemExit) as raised:
        cli.main(["provision", "--stream", "--verify"])

    assert raised.value.code == 2


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with moto_server(monkeypatch):
        client = boto3.client("s3")
        client.create_bucket(Bucket="weights")
        yield client


def test_bucket_is_a_source(s3: Any, models: Path, tmp_path: Path) -> None:
    s3.put_object(Bucket="weights", Key="some/a b.safetensors", Body=CONTENT)

    path = manifest(tmp_path, entry("s3://weights/some/a b.safetensors"))
    assert cli.main(["provision", path]) == 0

    assert (models / "vae" / "a.safetensors").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("source", "said"),
    [("s3://weights/none", "NoSuchKey"), ("s3://no-such-bucket/a", "NoSuchBucket")],
)
def test_missing_object_is_an_error(
    source: str,
    said: str,
    s3: Any,
    models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["provision", manifest(tmp_path, entry(source))]) == 13

    message = capsys.readouterr().err
    assert f"{source}: HTTP 404 {said}" in message
    assert "X-Amz" not in message


def test_copy_in_the_bucket_is_tried_before_the_other_sources(
    s3: Any, server: ModelServer, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELS_S3_URI", "s3://weights/copies/")
    s3.put_object(Bucket="weights", Key="copies/vae/a.safetensors", Body=CONTENT)
    elsewhere = entry(server.add("b", CONTENT), file="b.safetensors")

    path = manifest(tmp_path, entry(server.add("a", CONTENT)), elsewhere)
    assert cli.main(["provision", path]) == 0

    assert server.sent_bytes["/a"] == 0
    assert server.sent_bytes["/b"] > 0


def test_prefix_without_a_manifest_becomes_a_folder(
    s3: Any, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELS_S3_URI", "s3://weights/models")
    for key, body in {
        "models/": b"",
        "models/vae/put_vae_here": b"",
        "models/vae/wan.safetensors": b"v" * 10,
        "models/checkpoints/sd15/a.safetensors": b"c" * 20,
        "models/readme.txt": b"r",
        "other/secret": b"x",
    }.items():
        s3.put_object(Bucket="weights", Key=key, Body=body)
    (models / "vae").mkdir()
    (models / "vae" / "wan.safetensors").write_bytes(b"cut")

    assert cli.main(["provision"]) == 0

    files = {str(p.relative_to(models)): p.stat().st_size for p in models.rglob("*") if p.is_file()}
    assert files == {
        "vae/wan.safetensors": 10,
        "checkpoints/sd15/a.safetensors": 20,
        "readme.txt": 1,
    }


@pytest.mark.parametrize(
    ("uri", "status", "said"),
    [
        ("s3://weights/nothing/", 13, "there is nothing under"),
        ("s3://no-such-bucket/models/", 13, "NoSuchBucket"),
        ("https://weights/models", 2, "expected s3://bucket/prefix/"),
    ],
)
def test_wrong_prefix_says_what_is_wrong(
    uri: str,
    status: int,
    said: str,
    s3: Any,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MODELS_S3_URI", uri)

    assert cli.main(["provision"]) == status
    assert said in capsys.readouterr().err


def test_key_that_leads_out_of_the_folder_is_refused(
    s3: Any, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELS_S3_URI", "s3://weights/models")
    s3.put_object(Bucket="weights", Key="models/../../escaped", Body=b"x")

    assert cli.main(["provision"]) == 2
    assert list(models.iterdir()) == []


def test_nothing_to_do_is_no_failure_and_is_said(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["provision"]) == 0
    assert "name a manifest, or set MODEL_MANIFESTS or MODELS_S3_URI" in capsys.readouterr().err


def test_streamed_models_are_left_to_the_worker(
    server: ModelServer, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = manifest(tmp_path, entry(server.add("a", CONTENT)))
    monkeypatch.setenv("MODEL_MANIFESTS", path)

    assert cli.main(["provision", "--stream"]) == 0
    assert server.requests == []

    assert cli.main(["provision"]) == 0
    assert (models / "vae" / "a.safetensors").is_file()


def test_script_runs_after_the_models_with_the_environment(
    server: ModelServer, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "mine.sh"
    script.write_text(f'ls "$MODELS_DIR/vae" > {tmp_path}/seen')
    monkeypatch.setenv("PROVISIONING_SCRIPT", str(script))

    assert cli.main(["provision", manifest(tmp_path, entry(server.add("a", CONTENT)))]) == 0

    assert (tmp_path / "seen").read_text() == "a.safetensors\n"


def test_executable_script_is_run_by_its_own_interpreter(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "mine"
    script.write_text(f"#!{sys.executable}\nraise SystemExit(3)\n")
    script.chmod(0o755)
    monkeypatch.setenv("PROVISIONING_SCRIPT", str(script))

    assert cli.main(["provision"]) == 20


def test_script_of_a_url_runs_only_with_its_hash(
    server: ModelServer,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = f"touch {tmp_path}/ran\n".encode()
    url = server.add("x.sh", text)
    statuses = []
    for pin in ("", f"#sha256={'0' * 64}", f"#sha256={hashlib.sha256(text).hexdigest()}"):
        monkeypatch.setenv("PROVISIONING_SCRIPT", url + pin)
        assert not (tmp_path / "ran").exists()
        statuses.append(cli.main(["provision"]))

    assert statuses == [2, 11, 0]
    assert (tmp_path / "ran").exists()
    assert "append #sha256=HASH" in capsys.readouterr().err


def test_missing_script_is_a_usage_error(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROVISIONING_SCRIPT", "/no/such/script.sh")

    assert cli.main(["provision"]) == 2


def test_benchmark_workflow_is_put_in_place_and_replaced(
    server: ModelServer, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCHMARK_JSON_URL", f"{server.url}/workflow.json")
    place = Settings.from_env(os.environ).provisioned_benchmark
    workflows: list[dict[str, Any]] = [image(), image()]
    for workflow in workflows:
        server.add("workflow.json", json.dumps(workflow).encode())
        assert cli.main(["provision"]) == 0
        assert json.loads(place.read_text()) == workflow
        settings = Settings.from_env(os.environ)
        assert benchmark_workflow(settings) == ("BENCHMARK_JSON_URL", workflow)

    server.add("workflow.json", b"<html>")
    assert cli.main(["provision"]) == 20
    assert json.loads(place.read_text()) == workflows[-1]


def test_failed_download_names_the_variable_that_asked_for_it(
    server: ModelServer,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    nowhere = f"{server.url}/nowhere"
    monkeypatch.setenv("BENCHMARK_JSON_URL", nowhere)
    assert cli.main(["provision"]) == 13
    assert f"BENCHMARK_JSON_URL: {nowhere}: HTTP 404" in capsys.readouterr().err

    monkeypatch.delenv("BENCHMARK_JSON_URL")
    monkeypatch.setenv("PROVISIONING_SCRIPT", f"{nowhere}#sha256={'a' * 64}")
    assert cli.main(["provision"]) == 13
    assert f"PROVISIONING_SCRIPT: {nowhere}: HTTP 404" in capsys.readouterr().err
