"""Two workers, one bucket: what the first one compiles, the second one does not compile again.

The real TorchCompileModel of the real ComfyUI, on the CPU: the kernels are C++.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from handler.settings import PROJECT
from handler.worker_protocol import LOG_NAME, SOCKET_NAME
from runtime.local_s3 import LocalS3
from tests import workflows
from tests.aws import objects_in
from tests.conftest import run
from tests.processes import connect_to, wait_until
from tests.workflows import node, text

pytestmark = [
    pytest.mark.comfyui,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs g++ on a CPU"),
]

PREFIX = "compiled/"


class Machine:
    """A worker with empty folders, and a compiler that notes when it is called."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self.folder, self.process = folder, process

    def lines(self) -> Sequence[str]:
        """What its log says about compiled code."""
        text = (self.folder / LOG_NAME).read_text()
        return [line for line in text.splitlines() if "compiled code" in line]

    def has_said(self, words: str) -> bool:
        return wait_until(lambda: any(words in line for line in self.lines()), 120)

    def libraries(self) -> int:
        """How many libraries its compiler has made."""
        calls = self.folder.with_suffix(".calls")
        return calls.read_text().count(" -shared ") if calls.exists() else 0


@contextmanager
def machine(folder: Path, s3: LocalS3, **variables: str) -> Iterator[Machine]:
    """This process's handler uses the worker until the context ends."""
    compilers = folder.with_suffix(".bin")
    compilers.mkdir()
    for name in ("g++", "gcc"):
        script = (
            f'#!/bin/sh\necho " $* " >> {folder.with_suffix(".calls")}\nexec {_path(name)} "$@"\n'
        )
        (compilers / name).write_text(script)
        (compilers / name).chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            **s3.environ,
            "S3_BUCKET_NAME": "",
            "COMPILE_CACHE": f"s3://{s3.bucket_name}/{PREFIX}",
            "WORKER_DIR": str(folder),
            "COMFYUI_DATA_DIR": str(folder / "data"),
            "PATH": f"{compilers}:{os.environ['PATH']}",
            **variables,
        }.items():
            patch.setenv(name, value)
        process = subprocess.Popen([sys.executable, "-m", "runtime", "worker"], cwd=PROJECT)
        try:
            connect_to(folder / SOCKET_NAME).close()
            yield Machine(folder, process)
        finally:
            process.terminate()
            process.wait(60)


def _path(name: str) -> str:
    path = shutil.which(name)
    assert path
    return path


def sample() -> dict[str, Any]:
    """Sample once with a compiled model; the counters of PyTorch."""
    wan = workflows.wan()
    workflow = {name: wan[name] for name in ("101", "104", "96")}
    workflow["1"] = node("TestConditioning")
    workflow["2"] = node("TorchCompileModel", model=["101", 0], backend="inductor")
    workflow["96"]["inputs"] |= {"model": ["2", 0], "positive": ["1", 0], "negative": ["1", 0]}
    workflow["96"]["inputs"] |= {"steps": 1, "end_at_step": 1}
    workflow["3"] = node("TestCompiled", samples=["96", 0])
    response = run(workflow, seconds=500)
    assert response["status"] == "completed", response["message"]
    (entry, _) = response["comfyui_response"].values()
    counters: dict[str, Any] = json.loads(entry["outputs"]["3"]["text"][0])
    return counters


@pytest.mark.usefixtures("environment")
def test_second_worker_does_not_compile_what_the_first_one_has_compiled(
    tmp_path: Path, s3: LocalS3
) -> None:
    with machine(tmp_path / "first", s3) as first:
        assert first.has_said("there is none yet")
        compiled = sample()
        assert first.has_said("compiled code: stored")
    (name,) = objects_in(s3, PREFIX)
    assert "torch-" in name
    assert compiled["fxgraph_cache_miss"] > 0
    assert first.libraries() > 0

    with machine(tmp_path / "second", s3, SHUTDOWN_GRACE="60") as second:
        assert second.has_said(f"files of s3://{s3.bucket_name}/{name}")
        found = sample()
    assert found["fxgraph_cache_hit"] == compiled["fxgraph_cache_miss"]
    assert "fxgraph_cache_miss" not in found
    assert second.libraries() == 0
    # With nothing new, it stores nothing, also when it ends.
    assert len(second.lines()) == 1


@pytest.mark.usefixtures("environment")
def test_job_runs_although_the_bucket_lets_nobody_in(tmp_path: Path, s3: LocalS3) -> None:
    with machine(tmp_path / "worker", s3, S3_SECRET_ACCESS_KEY="wrong") as refused:
        assert run(text())["status"] == "completed"
        assert refused.has_said("is not used: S3: ")

    assert len(refused.lines()) == 1
