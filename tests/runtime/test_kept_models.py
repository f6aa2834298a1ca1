"""Models of earlier prompts stay in memory: with the real ComfyUI, a real worker and handler."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from handler.settings import PROJECT, Settings
from handler.worker_protocol import SOCKET_NAME
from runtime.local_s3 import LocalS3
from runtime.worker import housekeeping
from runtime.worker.node_cache import NodeCache, node_cache
from tests.conftest import run
from tests.handler.test_storage import s3_fields
from tests.processes import connect_to
from tests.workflows import Workflow, node

pytestmark = [
    pytest.mark.slow,
    pytest.mark.comfyui,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

# The machine that runs the tests may be short of memory, or have plenty.
_WORKER = """
import sys
from runtime import cli
from runtime.worker import node_cache

node_cache._MIN_HEADROOM_BYTES = node_cache._MAX_HEADROOM_BYTES = int(sys.argv[1])
sys.exit(cli.main(["worker"]))
"""
NO_HEADROOM = 1
MORE_THAN_ANY_MACHINE_HAS = 1 << 60

Start = Callable[..., None]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start a worker with this headroom, which the handler of this process uses."""
    if node_cache(Settings.from_env(os.environ)) is not NodeCache.MODELS:
        pytest.skip("this version of ComfyUI has no classic node cache by default")
    with ExitStack() as stack:

        def start(headroom_bytes: int = NO_HEADROOM, arguments: str = "") -> None:
            monkeypatch.setenv("WORKER_DIR", str(tmp_path / "worker"))
            monkeypatch.setenv("COMFYUI_DATA_DIR", str(tmp_path / "data"))
            monkeypatch.setenv("COMFYUI_ARGS", f"{os.environ['COMFYUI_ARGS']} {arguments}")
            line = [sys.executable, "-c", _WORKER, str(headroom_bytes)]
            worker = stack.enter_context(subprocess.Popen(line, cwd=PROJECT))
            stack.callback(worker.wait, 60)
            stack.callback(worker.terminate)
            connect_to(tmp_path / "worker" / SOCKET_NAME).close()

        yield start


def decoding(seed: int = 0) -> Workflow:
    """An image that a VAE makes."""
    return {
        "1": node("VAELoader", vae_name="wan_2.1_vae.safetensors"),
        "2": node("EmptyHunyuanLatentVideo", width=32, height=32, length=1, batch_size=1),
        "3": node("VAEDecode", samples=["2", 0], vae=["1", 0]),
        "4": node("SaveImage", images=["3", 0], filename_prefix="decoded"),
        "5": node("PrimitiveInt", value=seed),
        "6": node("PreviewAny", source=["5", 0]),
    }


def patching() -> Workflow:
    """A diffusion model with a LoRA, and an image without them."""
    name = "high_noise"
    model = f"wan2.2_t2v_{name}_14B_fp8_scaled.safetensors"
    lora = f"wan2.2_t2v_lightx2v_4steps_lora_v1.1_{name}.safetensors"
    return {
        "1": node("UNETLoader", unet_name=model, weight_dtype="default"),
        "2": node("LoraLoaderModelOnly", model=["1", 0], lora_name=lora, strength_model=1.0),
        "3": node("ModelSamplingSD3", model=["2", 0], shift=5.0),
        "4": node("PreviewAny", source=["3", 0]),
        "5": node("EmptyImage", width=32, height=32, batch_size=1, color=7),
        "6": node("SaveImage", images=["5", 0], filename_prefix="plain"),
    }


def nodes_of(response: dict[str, Any]) -> set[str]:
    """The nodes that ran for a job that has completed."""
    assert response["status"] == "completed", response
    return set(response["comfyui_response"]["execution_details"]["nodes_executed"])


def test_alternating_workflows_load_each_model_once(start: Start) -> None:
    start()

    ran = [nodes_of(run(workflow)) for workflow in [decoding(), patching()] * 3]

    assert ran[0] == set(decoding())
    assert ran[1] == set(patching())
    # All but the models is forgotten as before: what was made from them is made again.
    assert ran[2] == ran[4] == set(decoding()) - {"1"}
    assert ran[3] == ran[5] == set(patching()) - {"1"}


def test_model_is_used_by_another_workflow_than_the_one_that_has_loaded_it(start: Start) -> None:
    start()
    run(decoding())
    run(patching())
    other = {**decoding(), "4": node("PreviewImage", images=["3", 0])}

    assert "1" not in nodes_of(run(other))


@pytest.mark.parametrize(
    ("headroom_bytes", "arguments"),
    [(MORE_THAN_ANY_MACHINE_HAS, ""), (NO_HEADROOM, "--cache-classic")],
    ids=["short of memory", "classic"],
)
def test_models_are_forgotten_where_memory_is_short_or_the_user_wants_the_classic_cache(
    start: Start, headroom_bytes: int, arguments: str
) -> None:
    start(headroom_bytes, arguments)

    ran = [nodes_of(run(workflow)) for workflow in [decoding(), patching()] * 2]

    assert ran == [set(decoding()), set(patching())] * 2
    # What the next prompt needs is not a question of memory.
    assert nodes_of(run(patching())) == set()


def test_second_job_of_a_workflow_has_its_own_files_though_those_of_the_first_were_removed(
    start: Start, s3: LocalS3
) -> None:
    start()
    settings = replace(Settings.from_env(os.environ), keep_outputs_s=0.0)
    bucket = s3_fields(s3)
    files = []
    for number in range(6):
        workflow = decoding(seed=number) if number % 2 == 0 else patching()
        response = run(workflow, request_id=f"job-{number}", s3=bucket)
        assert response["status"] == "completed", response
        (item,) = (each for each in response["output"] if each["filename"].endswith(".png"))
        assert Path(item["local_path"]).exists()
        assert requests.get(item["url"], timeout=30).content.startswith(b"\x89PNG")
        files.append((item["filename"], item["node_id"]))
        # Delivered: all but those of the newest job go.
        housekeeping.clean(settings)
        names = {path.name for path in (settings.comfyui_data / "output").glob("*.png")}
        assert names == {item["filename"]}

    # The number of a file that was removed is given again, to the node that makes it.
    assert files == [("decoded_00001_.png", "4"), ("plain_00001_.png", "6")] * 3
