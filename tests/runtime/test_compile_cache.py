"""Compiled code between workers and buckets. This test writes the files that PyTorch would write.

tests/test_compile_cache.py has the real PyTorch, in the real ComfyUI.
"""

import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from handler.settings import PROJECT, Settings
from handler.worker_protocol import State
from runtime.local_s3 import LocalS3
from runtime.worker import compile_cache, compile_exchange
from runtime.worker.compile_archive import pack
from runtime.worker.compile_cache import CompileCache
from runtime.worker.compile_key import Compiler, object_name, read_compiler
from runtime.worker.lifecycle import Worker
from tests.aws import bucket_client, moto_server, objects_in
from tests.processes import wait_until
from tests.runtime.test_worker import RunningWorker

PREFIX = "compiled/"
FAKE = PROJECT / "tests" / "fakes" / "comfyui"
COMPILER = {
    "torch": "2.14.1+cu130",
    "triton": "3.8.0",
    "cuda": "13.0",
    "rocm": "",
    "python": "3.13",
    "device": "NVIDIA L40S",
    "capability": "8.9",
}
KERNEL = "inductor/ab/kernel.py"


class Machine:
    """A worker's cache, and the ComfyUI that writes to its folders."""

    def __init__(self, folder: Path, bucket: LocalS3, log: list[str], **given: Any) -> None:
        folder.mkdir()
        self.root, self._log = folder / "compiled", log
        settings = Settings(
            worker_dir_given=folder,
            compile_cache=f"s3://{bucket.bucket_name}/{PREFIX}",
            s3_endpoint_url=bucket.endpoint_url,
            s3_access_key_id=bucket.access_key_id,
            s3_secret_access_key=bucket.secret_access_key,
            s3_region="us-east-1",
            clean_below_mb=0,
        )
        self.cache = CompileCache(replace(settings, **given))
        self.cache.start()

    def boot(self, compiler: Mapping[str, str] = COMPILER) -> list[str]:
        """Start ComfyUI; the lines about what the bucket has."""
        before = len(self._log)
        self.cache.begin_process()
        assert self.cache.take(f"[compiler] {json.dumps(compiler)}")
        assert wait_until(lambda: len(self._log) > before)
        return self._log[before:]

    def compile(self, **files: bytes) -> None:
        """Run a prompt that compiles these files: `ab__kernel` is a file in the folder ab."""
        self.cache.begin_prompt()
        for name, content in files.items():
            self.write(f"inductor/{name.replace('__', '/')}", content)
        self.cache.end_prompt()

    def write(self, path: str, content: bytes) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_bytes(content)

    def read(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def files(self) -> set[str]:
        found = [path for path in self.root.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.root)) for path in found}


NewMachine = Callable[..., Machine]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was compiled is stored as soon as its prompt has ended."""
    monkeypatch.setattr(compile_cache, "QUIET_S", 0.0)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(compile_cache, "log", lines.append)
    return lines


@pytest.fixture
def new_machine(tmp_path: Path, log: list[str]) -> Iterator[NewMachine]:
    with ExitStack() as stack:

        def make(name: str, bucket: LocalS3, **given: Any) -> Machine:
            machine = Machine(tmp_path / name, bucket, log, **given)
            stack.callback(machine.cache.stop, 0.0)
            return machine

        yield make


@pytest.fixture
def moto(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalS3]:
    """A bucket that knows conditional uploads as AWS does; rclone's ignores the conditions."""
    with moto_server(monkeypatch, "AWS_ENDPOINT_URL_S3") as url:
        bucket = LocalS3(url, "testing", "testing", "compiled-code")
        bucket_client(bucket).create_bucket(Bucket=bucket.bucket_name)
        yield bucket


def has_said(log: list[str], words: str, times: int = 1) -> bool:
    return wait_until(lambda: sum(words in line for line in log) == times)


def stored_files(bucket: LocalS3, folder: Path) -> set[str]:
    """The files in the only object of a bucket."""
    (key,) = objects_in(bucket, PREFIX)
    client = bucket_client(bucket)
    client.download_file(bucket.bucket_name, key, str(folder / "object.zip"))
    client.close()
    with zipfile.ZipFile(folder / "object.zip") as archive:
        assert archive.testzip() is None
        return set(archive.namelist())


def put_object(bucket: LocalS3, content: bytes) -> None:
    """Replace the only object of a bucket."""
    (key,) = objects_in(bucket, PREFIX)
    client = bucket_client(bucket)
    client.put_object(Bucket=bucket.bucket_name, Key=key, Body=content)
    client.close()


def get_object(bucket: LocalS3) -> bytes:
    (key,) = objects_in(bucket, PREFIX)
    client = bucket_client(bucket)
    content: bytes = client.get_object(Bucket=bucket.bucket_name, Key=key)["Body"].read()
    client.close()
    return content


def test_next_machine_gets_what_the_first_one_has_compiled(
    s3: LocalS3, new_machine: NewMachine, log: list[str]
) -> None:
    first = new_machine("first", s3)
    assert "there is none yet" in first.boot()[0]
    first.compile(ab__kernel=b"code")
    assert has_said(log, "stored 1 files")

    second = new_machine("second", s3)
    (said,) = second.boot()

    assert "1 files of s3://" in said
    assert second.read("inductor/ab/kernel") == b"code"


@pytest.mark.comfyui
@pytest.mark.slow
def test_triton_finds_its_files_on_a_machine_with_other_folders(
    s3: LocalS3, new_machine: NewMachine, log: list[str]
) -> None:
    python = Settings.from_env(os.environ).comfyui_interpreter
    if subprocess.run([python, "-c", "import triton.runtime.cache"], check=False).returncode:
        pytest.skip("ComfyUI's environment has no Triton")

    def triton(machine: Machine, code: str) -> str:
        program = (
            "from triton.runtime.cache import FileCacheManager; cache = FileCacheManager('k'); "
        )
        environ = os.environ | {"TRITON_CACHE_DIR": str(machine.root / "triton")}
        line = [str(python), "-c", program + code]
        return subprocess.run(line, env=environ, check=True, capture_output=True, text=True).stdout

    first = new_machine("first", s3)
    first.boot()
    first.cache.begin_prompt()
    triton(first, "cache.put_group('k.json', {'k.cubin': cache.put(b'code', 'k.cubin')})")
    first.cache.end_prompt()
    assert has_said(log, "stored 2 files")

    second = new_machine("second", s3)
    second.boot()

    found = triton(second, "print(cache.get_group('k.json'))")
    assert found.strip() == str({"k.cubin": str(second.root / "triton" / "k" / "k.cubin")})


def test_another_version_or_device_has_an_object_of_its_own(
    s3: LocalS3, new_machine: NewMachine, log: list[str]
) -> None:
    first = new_machine("first", s3)
    first.boot()
    first.compile(kernel=b"code")
    assert has_said(log, "compiled code: stored")

    second = new_machine("second", s3)

    assert "there is none yet" in second.boot({**COMPILER, "capability": "9.0"})[0]
    assert not second.files()


@pytest.mark.parametrize("field", COMPILER)
def test_name_of_the_object_has_everything_that_code_depends_on(field: str) -> None:
    before = object_name(Compiler(**COMPILER), "debian 12 x86_64", "0a1b2c3d")
    after = object_name(Compiler(**COMPILER | {field: "7.77"}), "debian 12 x86_64", "0a1b2c3d")

    assert before == (
        "torch-2.14.1-cu130_triton-3.8.0_cuda-13.0_NVIDIA-L40S-8.9_python-3.13"
        "_debian-12-x86-64_cpu-0a1b2c3d.zip"
    )
    assert after != before
    assert "7.77" in after


def test_name_of_the_object_has_the_system_and_the_cpu() -> None:
    compiler = Compiler(**COMPILER)
    names = {
        object_name(compiler, system, cpu)
        for system in ("debian 12 x86_64", "ubuntu 24.04 x86_64")
        for cpu in ("0a1b2c3d", "ffffffff")
    }

    assert len(names) == 4


@pytest.mark.parametrize("line", ["[compiler] {}", "[compiler] {", '[compiler] {"torch": 1}', "x"])
def test_line_that_a_custom_node_prints_is_no_report(line: str) -> None:
    assert read_compiler(line) is None


def test_worker_that_compiles_nothing_new_stores_nothing(
    s3: LocalS3, new_machine: NewMachine, log: list[str]
) -> None:
    first = new_machine("first", s3)
    first.boot()
    first.compile(kernel=b"code")
    assert has_said(log, "compiled code: stored")

    second = new_machine("second", s3)
    second.boot()
    second.compile(kernel=b"code")
    second.cache.stop(time.monotonic() + 60)

    assert has_said(log, "compiled code: stored")


def test_object_grows_with_what_later_workers_compile(
    s3: LocalS3, new_machine: NewMachine, log: list[str], tmp_path: Path
) -> None:
    for number, name in enumerate(("a", "b", "c"), 1):
        machine = new_machine(name, s3)
        machine.boot()
        machine.compile(**{f"{name}__kernel": b"code"})
        assert has_said(log, "compiled code: stored", number)

    expected = {"inductor/a/kernel", "inductor/b/kernel", "inductor/c/kernel"}
    assert stored_files(s3, tmp_path) == expected


def test_workers_that_began_with_nothing_keep_each_others_files(
    s3: LocalS3, new_machine: NewMachine, log: list[str], tmp_path: Path
) -> None:
    machines = {name: new_machine(name, s3) for name in ("a", "b")}
    for machine in machines.values():
        machine.boot()
    for number, (name, machine) in enumerate(machines.items(), 1):
        machine.compile(**{name: b"code"})
        assert has_said(log, "compiled code: stored", number)

    assert stored_files(s3, tmp_path) == {"inductor/a", "inductor/b"}


@pytest.mark.slow
def test_worker_that_stores_while_another_one_does_adds_to_its_object(
    moto: LocalS3,
    new_machine: NewMachine,
    log: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = new_machine("first", moto), new_machine("second", moto)
    first.boot()
    second.boot()

    def pack_while_the_second_one_stores(*arguments: Any) -> set[str]:
        monkeypatch.setattr(compile_exchange, "pack", pack)
        second.compile(theirs=b"code")
        assert has_said(log, "stored 1 files")
        return pack(*arguments)

    monkeypatch.setattr(compile_exchange, "pack", pack_while_the_second_one_stores)
    first.compile(ours=b"code")

    assert has_said(log, "stored 2 files")
    assert stored_files(moto, tmp_path) == {"inductor/ours", "inductor/theirs"}


def _truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _flipped(content: bytes) -> bytes:
    """With another byte within the first file."""
    position = content.index(b"kernel") + 10
    return content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :]


def _of_another_version(content: bytes) -> bytes:
    return content.replace(b"torch-2.14.1", b"torch-2.13.0")


@pytest.mark.parametrize(
    "damage", [_truncated, _flipped, _of_another_version, lambda _: b"", lambda _: b"<html>"]
)
def test_broken_object_costs_one_line_and_is_replaced(
    s3: LocalS3,
    new_machine: NewMachine,
    log: list[str],
    tmp_path: Path,
    damage: Callable[[bytes], bytes],
) -> None:
    first = new_machine("first", s3)
    first.boot()
    first.compile(kernel=os.urandom(1000))
    assert has_said(log, "compiled code: stored")
    put_object(s3, damage(get_object(s3)))

    second = new_machine("second", s3)
    (said,) = second.boot()
    before = second.files()
    second.compile(other=b"code")

    assert "is not used" in said
    assert not before
    assert has_said(log, "compiled code: stored", 2)
    assert stored_files(s3, tmp_path) == {"inductor/other"}


@pytest.mark.parametrize(
    "name", ["../escaped", "/tmp/escaped", "inductor/../../escaped", "other/x"]
)
def test_object_with_a_file_of_another_folder_is_not_used(
    s3: LocalS3, new_machine: NewMachine, log: list[str], tmp_path: Path, name: str
) -> None:
    first = new_machine("first", s3)
    first.boot()
    first.compile(kernel=b"code")
    assert has_said(log, "compiled code: stored")
    stored_files(s3, tmp_path)
    with zipfile.ZipFile(tmp_path / "object.zip", "a") as archive:
        archive.writestr(name, b"evil")
    put_object(s3, (tmp_path / "object.zip").read_bytes())

    second = new_machine("second", s3)

    assert "belongs into no folder" in second.boot()[0]
    assert not second.files()
    assert not list(tmp_path.rglob("escaped"))


def test_object_that_is_too_large_is_not_downloaded(
    s3: LocalS3, new_machine: NewMachine, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = new_machine("first", s3)
    first.boot()
    first.compile(kernel=os.urandom(2000))
    assert has_said(log, "compiled code: stored")
    monkeypatch.setattr(compile_exchange, "MAX_BYTES", 1000)

    second = new_machine("second", s3)

    assert "there is room for" in second.boot()[0]
    assert not second.files()


def test_object_that_unpacks_to_too_much_is_not_used(
    s3: LocalS3, new_machine: NewMachine, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = new_machine("first", s3)
    first.boot()
    first.compile(kernel=bytes(1_000_000))
    assert has_said(log, "compiled code: stored")
    monkeypatch.setattr(compile_exchange, "MAX_BYTES", 100_000)

    second = new_machine("second", s3)

    assert "unpacked" in second.boot()[0]
    assert not second.files()


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["wrong secret", "no bucket", "no server"])
def test_bucket_that_cannot_be_used_costs_one_line_each_way(
    s3: LocalS3, new_machine: NewMachine, log: list[str], fault: str
) -> None:
    bucket = {
        "wrong secret": replace(s3, secret_access_key="not-the-secret"),
        "no bucket": replace(s3, bucket_name="no-such-bucket"),
        "no server": replace(s3, endpoint_url="http://127.0.0.1:9"),
    }[fault]
    machine = new_machine("machine", bucket)

    assert "is not used: S3: " in machine.boot()[0]
    machine.compile(kernel=b"code")
    assert has_said(log, "is not stored")
    machine.compile()
    machine.compile()
    machine.cache.stop(time.monotonic() + 60)

    assert len(log) == 2
    assert "not-the-secret" not in "".join(log)


def test_file_of_a_prompt_that_has_not_ended_is_not_stored(
    s3: LocalS3, new_machine: NewMachine, log: list[str], tmp_path: Path
) -> None:
    machine = new_machine("machine", s3)
    machine.boot()
    machine.compile(complete=b"code")
    machine.cache.begin_prompt()
    machine.write("inductor/half", b"co")
    machine.cache.stop(time.monotonic() + 60)

    assert has_said(log, "stored 1 files")
    assert stored_files(s3, tmp_path) == {"inductor/complete"}


def test_file_that_was_written_again_since_its_prompt_is_left_for_the_next_time(
    s3: LocalS3, new_machine: NewMachine, log: list[str], tmp_path: Path
) -> None:
    machine = new_machine("machine", s3)
    machine.boot()
    with machine.cache._changed:
        machine.compile(complete=b"code", half=b"co")
        machine.write("inductor/half", b"code")

    assert has_said(log, "stored 1 files")
    assert stored_files(s3, tmp_path) == {"inductor/complete"}


def test_code_of_a_comfyui_that_does_not_say_what_it_depends_on_is_not_stored(
    s3: LocalS3, new_machine: NewMachine
) -> None:
    machine = new_machine("machine", s3)
    machine.cache.begin_process()
    machine.compile(kernel=b"code")
    machine.cache.stop(time.monotonic() + 60)

    assert objects_in(s3, "") == set()


def test_what_a_killed_comfyui_has_left_is_removed_and_the_rest_comes_again(
    s3: LocalS3, new_machine: NewMachine, log: list[str]
) -> None:
    machine = new_machine("machine", s3)
    machine.boot()
    machine.compile(complete=b"code")
    assert has_said(log, "compiled code: stored")
    machine.cache.begin_prompt()
    machine.write("inductor/half", b"co")

    machine.boot()

    assert machine.files() == {"inductor/complete"}


def test_comfyui_that_has_slept_finds_its_files_without_the_bucket(
    s3: LocalS3, new_machine: NewMachine, log: list[str]
) -> None:
    machine = new_machine("machine", s3)
    machine.boot()
    machine.compile(complete=b"code")
    assert has_said(log, "compiled code: stored")

    machine.cache.begin_process()
    machine.cache.take(f"[compiler] {json.dumps(COMPILER)}")

    assert machine.files() == {"inductor/complete"}
    machine.cache.stop(time.monotonic() + 60)
    assert len(log) == 2


def test_busy_worker_stores_after_a_while(
    s3: LocalS3, new_machine: NewMachine, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compile_cache, "QUIET_S", 1000.0)
    monkeypatch.setattr(compile_cache, "PATIENCE_S", 0.0)
    machine = new_machine("machine", s3)
    machine.boot()
    with machine.cache._changed:
        machine.compile(kernel=b"code")
        machine.cache.begin_prompt()

    assert has_said(log, "stored 1 files")


def test_worker_that_drains_stores_at_once(
    s3: LocalS3, new_machine: NewMachine, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compile_cache, "QUIET_S", 1000.0)
    machine = new_machine("machine", s3)
    machine.boot()
    machine.compile(kernel=b"code")

    machine.cache.stop(time.monotonic() + 60)

    assert has_said(log, "stored 1 files")


@pytest.mark.parametrize("until", [0.0, math.inf])
def test_worker_that_has_no_time_left_stores_nothing(
    s3: LocalS3,
    new_machine: NewMachine,
    log: list[str],
    monkeypatch: pytest.MonkeyPatch,
    until: float,
) -> None:
    monkeypatch.setattr(compile_cache, "QUIET_S", 1000.0)
    machine = new_machine("machine", s3)
    machine.boot()
    machine.compile(kernel=b"code")

    machine.cache.stop(until)

    assert wait_until(lambda: not machine.cache._thread.is_alive())
    assert objects_in(s3, PREFIX) == set()


@pytest.mark.slow
def test_end_of_a_worker_does_not_wait_for_a_server_that_hangs(
    s3: LocalS3, new_machine: NewMachine
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        machine = new_machine("machine", replace(s3, endpoint_url=url))
        machine.cache.begin_process()
        machine.cache.take(f"[compiler] {json.dumps(COMPILER)}")
        # The download has begun.
        connection, _ = silent.accept()
        with connection:
            ended = threading.Event()

            def stop() -> None:
                machine.cache.stop(time.monotonic() + 0.1)
                ended.set()

            threading.Thread(target=stop, daemon=True).start()

            assert ended.wait(10), "it waited for the server, which never answers"
            assert machine.cache._thread.is_alive()


def test_worker_without_the_setting_does_nothing(tmp_path: Path) -> None:
    cache = CompileCache(Settings(worker_dir_given=tmp_path))

    cache.start()

    assert cache.begin_process() == {}
    assert not cache.take(f"[compiler] {json.dumps(COMPILER)}")
    cache.begin_prompt()
    cache.end_prompt()
    cache.stop(time.monotonic() + 60)
    assert list(tmp_path.iterdir()) == []


COMFYUI_THAT_COMPILES = f"""
import os, pathlib, runpy
os.write(1, b'[compiler] {json.dumps(COMPILER)}\\n[a begins]\\n')
folder = pathlib.Path(os.environ['TORCHINDUCTOR_CACHE_DIR'])
folder.mkdir(parents=True)
(folder / 'kernel').write_bytes(b'code')
os.write(1, b'[a has ended]\\n')
runpy.run_path({str(FAKE / "main.py")!r}, run_name='__main__')
"""


@pytest.mark.slow
@pytest.mark.parametrize(("grace_s", "is_stored"), [(60.0, True), (0.0, False)])
def test_draining_worker_stores_within_its_grace(
    s3: LocalS3,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    grace_s: float,
    is_stored: bool,
) -> None:
    monkeypatch.setattr(compile_cache, "QUIET_S", 1000.0)
    (tmp_path / "comfyui").mkdir()
    (tmp_path / "comfyui" / "main.py").write_text(COMFYUI_THAT_COMPILES)
    worker = Worker(
        Settings(
            comfyui_dir=tmp_path / "comfyui",
            comfyui_python=Path(sys.executable),
            comfyui_args=("--cpu",),
            comfyui_port=0,
            comfyui_data_dir=tmp_path / "data",
            worker_dir_given=tmp_path / "worker",
            compile_cache=f"s3://{s3.bucket_name}/{PREFIX}",
            s3_endpoint_url=s3.endpoint_url,
            s3_access_key_id=s3.access_key_id,
            s3_secret_access_key=s3.secret_access_key,
            clean_below_mb=0,
        )
    )
    thread = threading.Thread(target=worker.supervise)
    thread.start()
    assert worker.wait_settled(60) is State.READY

    worker.stop(grace_s)
    thread.join(60)

    assert bool(objects_in(s3, PREFIX)) is is_stored


@contextmanager
def bucket_server(put: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """The URL of a server that has no object, and answers uploads by `put`."""

    class Bucket(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)
            self.end_headers()

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            put(self)

        def log_message(self, format: str, *args: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Bucket) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.slow
def test_store_that_knows_no_conditions_takes_the_object_without_one(
    s3: LocalS3, new_machine: NewMachine, log: list[str]
) -> None:
    conditions: list[str | None] = []

    def put(request: BaseHTTPRequestHandler) -> None:
        conditions.append(request.headers["If-None-Match"])
        content = b"<Error><Code>NotImplemented</Code></Error>" if conditions[-1] else b""
        request.send_response(501 if content else 200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    with bucket_server(put) as url:
        machine = new_machine("machine", replace(s3, endpoint_url=url))
        machine.boot()
        machine.compile(kernel=b"code")

        assert has_said(log, "compiled code: stored")
    assert conditions == ["*", None]


@pytest.mark.slow
def test_upload_that_hangs_does_not_keep_a_worker_from_ending(tmp_path: Path) -> None:
    uploads: list[str] = []
    is_over = threading.Event()

    def put(request: BaseHTTPRequestHandler) -> None:
        uploads.append(request.path)
        is_over.wait()

    (tmp_path / "comfyui").mkdir()
    (tmp_path / "comfyui" / "main.py").write_text(COMFYUI_THAT_COMPILES)
    with bucket_server(put) as url:
        variables = {
            "COMFYUI_DIR": str(tmp_path / "comfyui"),
            "COMFYUI_PYTHON": sys.executable,
            "COMFYUI_ARGS": "--cpu",
            "COMPILE_CACHE": f"s3://bucket/{PREFIX}",
            "S3_ENDPOINT_URL": url,
            "S3_ACCESS_KEY_ID": "a",
            "S3_SECRET_ACCESS_KEY": "b",
            "SHUTDOWN_GRACE": "0.5",
        }
        try:
            worker = RunningWorker(tmp_path / "worker", [], variables)
            with worker.process:
                assert wait_until(lambda: len(uploads) == 1)
                worker.process.terminate()
                assert worker.process.wait(60) == 0
            # A worker that had waited until boto3 gives up would have tried it again.
            assert len(uploads) == 1
        finally:
            is_over.set()
