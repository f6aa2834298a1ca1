"""A worker whose disk is empty: jobs wait for their models, and for no others."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from events.contract.schemas import response_problems
from handler.emit import subscribed
from handler.job_events import JobEvent, WeightsArrived, WeightsAwaited
from handler.settings import PROJECT, Settings
from handler.worker_protocol import SOCKET_NAME
from runtime.models.parts import is_placeholder
from tests import workflows
from tests.conftest import run, worker_status
from tests.model_server import Faults, ModelServer, model_server
from tests.processes import connect_to, wait_until
from tests.workflows import Workflow, node

pytestmark = [pytest.mark.comfyui, pytest.mark.slow, pytest.mark.timeout(600)]

MB = 1_000_000
# Bytes a second.
NEARLY_NOTHING = 1
KINDS = ("vae", "diffusion_models")
HIGH = "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors"
LOW = "wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors"
VAE = "wan_2.1_vae.safetensors"


def loads(*names: str) -> Workflow:
    """A workflow that loads these models one after another and computes nothing."""
    workflow: Workflow = {}
    for number, name in enumerate(names):
        loader = (
            node("VAELoader", vae_name=name)
            if name == VAE
            else node("UNETLoader", unet_name=name, weight_dtype="default")
        )
        workflow[f"{number}1"] = loader
        workflow[f"{number}2"] = node("PreviewAny", source=[f"{number}1", 0])
    return workflow


@pytest.fixture
def server() -> Iterator[ModelServer]:
    """The stand-in weights, on a server."""
    standins = Settings.from_env(os.environ).standins
    with model_server() as server:
        for kind in KINDS:
            for path in (standins / kind).iterdir():
                server.add(path.name, path.read_bytes())
        yield server


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def start_worker(
    environment: Path,
    server: ModelServer,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Start a worker of this test's own, which this process's handler uses from now on."""
    manifest = tmp_path / "manifest.yaml"
    files = [
        {
            "file": path.name,
            "folder": path.parent.name,
            "size": path.stat().st_size,
            "sources": [f"{server.url}/{path.name}"],
        }
        for kind in KINDS
        for path in sorted((Settings.from_env(os.environ).standins / kind).iterdir())
    ]
    manifest.write_text(yaml.safe_dump({"name": "test", "files": files}))
    models.mkdir()
    for name, value in {
        "WORKER_DIR": tmp_path / "worker",
        "COMFYUI_DATA_DIR": tmp_path / "data",
        "MODELS_DIR": models,
        "MODEL_MANIFESTS": manifest,
        "STANDIN_MODELS_DIR": tmp_path / "none",
    }.items():
        monkeypatch.setenv(name, str(value))
    with ExitStack() as stack:

        def start() -> subprocess.Popen[bytes]:
            process = subprocess.Popen([sys.executable, "-m", "runtime", "worker"], cwd=PROJECT)
            stack.callback(process.wait, 60)
            stack.callback(process.terminate)
            connect_to(tmp_path / "worker" / SOCKET_NAME).close()
            return process

        yield start


def test_job_on_an_empty_disk_waits_for_its_models_and_says_so(
    start_worker: Callable[[], Any], server: ModelServer, models: Path
) -> None:
    server.bytes_per_s = NEARLY_NOTHING
    start_worker()
    events: list[JobEvent] = []

    def note(event: JobEvent) -> None:
        events.append(event)
        if isinstance(event, WeightsAwaited):
            server.bytes_per_s = None

    with subscribed(note):
        response = run(loads(VAE, LOW))

    assert response_problems(response) == []
    assert response["status"] == "completed", response["message"]
    assert response["timings"]["weights_ms"] > 0
    waits = [event for event in events if isinstance(event, WeightsAwaited)]
    # Which of the two outputs comes first is ComfyUI's choice.
    assert waits[0].file in (VAE, LOW)
    assert all(0 <= event.done_bytes <= event.total_bytes for event in waits)
    arrived = [event.file for event in events if isinstance(event, WeightsArrived)]
    assert arrived[0] == waits[0].file
    assert (models / "diffusion_models" / LOW).read_bytes() == server.files[f"/{LOW}"]


def test_download_that_fails_fails_the_jobs_that_need_it_and_no_other(
    start_worker: Callable[[], Any], server: ModelServer
) -> None:
    server.faults[f"/{HIGH}"] = Faults(always_status=403)
    start_worker()

    failed = run(loads(HIGH))
    completed = run(loads(LOW))

    assert response_problems(failed) == []
    assert failed["error"]["type"] == "ModelUnavailable"
    assert failed["error"]["retryable"]
    assert failed["error"]["node_id"] == "01"
    assert "node 01 (UNETLoader): " in failed["error"]["message"]
    assert HIGH in failed["error"]["message"]
    assert "403" in failed["error"]["message"]
    assert completed["status"] == "completed", completed["message"]
    # The machine is sound: ComfyUI was not replaced.
    assert worker_status().starts == 1
    server.faults[f"/{HIGH}"] = Faults()
    assert run(loads(HIGH))["status"] == "completed"


def test_disk_that_takes_no_file_for_a_model_is_no_fault_of_the_job(
    start_worker: Callable[[], Any], models: Path
) -> None:
    (models / "vae" / VAE).mkdir(parents=True)
    start_worker()

    failed = run(loads(VAE))

    assert failed["error"]["type"] == "ModelUnavailable"
    assert failed["error"]["retryable"]
    assert failed["error"]["message"] == (
        f"{VAE} cannot be put on the disk of the worker: Is a directory"
    )
    (models / "vae" / VAE).rmdir()
    assert run(loads(VAE))["status"] == "completed"


def test_job_that_waits_for_a_model_ends_at_its_deadline(
    start_worker: Callable[[], Any], server: ModelServer
) -> None:
    # The source asks for patience: nothing comes meanwhile.
    server.faults[f"/{VAE}"] = Faults(statuses=[503], retry_after="600")
    start_worker()
    assert run(workflows.image())["status"] == "completed"

    response = run(loads(VAE), seconds=8)

    error = response["error"]
    assert error["type"] == "DeadlineExceeded"
    assert f"while the job waited for {VAE}" in error["message"]
    # The download goes on, so a later attempt has less to wait for.
    assert error["retryable"]
    assert response["timings"]["weights_ms"] > 0
    # The loader has read the interrupt.
    assert worker_status().starts == 1
    assert run(loads(LOW))["status"] == "completed"


def test_worker_that_was_killed_in_a_download_leaves_no_half_model(
    start_worker: Callable[[], Any], server: ModelServer, models: Path
) -> None:
    server.bytes_per_s = 0.2 * MB
    process = start_worker()
    assert wait_until(lambda: server.sent_bytes[f"/{HIGH}"] > 0.2 * MB)
    process.kill()
    process.wait()
    assert is_placeholder(models / "diffusion_models" / HIGH)
    server.bytes_per_s = None

    start_worker()

    response = run(loads(HIGH))
    assert response["status"] == "completed", response["message"]
    assert (models / "diffusion_models" / HIGH).read_bytes() == server.files[f"/{HIGH}"]


def test_model_by_its_url_is_downloaded_and_loaded(
    start_worker: Callable[[], Any],
    server: ModelServer,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also by a worker that has no manifest."""
    monkeypatch.setenv("MODEL_MANIFESTS", "")
    monkeypatch.setenv("MODEL_URLS", "127.0.0.1")
    start_worker()
    workflow = {
        "1": node("VAELoader", vae_name=f"{server.url}/{VAE}?token=s3cret"),
        "2": node("PreviewAny", source=["1", 0]),
    }

    response = run(workflow)

    assert response["status"] == "completed", response
    assert "s3cret" not in str(response)
    (model,) = (path for path in models.rglob(VAE) if not is_placeholder(path))
    assert model.read_bytes() == server.files[f"/{VAE}"]
    requests = len(server.requests)
    assert run(workflow)["status"] == "completed"
    assert len(server.requests) == requests


def test_model_by_a_url_that_leads_nowhere_fails_its_job_with_the_reason(
    start_worker: Callable[[], Any], server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_MANIFESTS", "")
    monkeypatch.setenv("MODEL_URLS", "127.0.0.1")
    start_worker()

    response = run({
        "1": node("VAELoader", vae_name=f"{server.url}/none.safetensors?token=s3cret"),
        "2": node("PreviewAny", source=["1", 0]),
    })  # fmt: skip

    assert response["status"] == "failed"
    assert "HTTP 404" in response["message"]
    assert (response["error"]["type"], response["error"]["retryable"]) == ("InvalidRequest", False)
    assert "s3cret" not in str(response)
