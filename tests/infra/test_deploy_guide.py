"""docs/deploy-aws.md: what its commands do before they reach AWS."""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from handler.settings import PROJECT, Settings
from runtime.models.manifest import find_manifest, read_manifest
from tests.events.samples import sample

GUIDE = (PROJECT / "docs" / "deploy-aws.md").read_text()
CONFIG = (PROJECT / "samconfig.toml").read_text()
# The inputs of nodes that name files of weights.
LOADED = ("ckpt_name", "clip_name", "vae_name", "unet_name", "lora_name")


def weights_of(event: dict[str, Any]) -> set[str]:
    nodes = event["input"]["workflow_json"].values()
    return {node["inputs"][key] for node in nodes for key in LOADED if key in node["inputs"]}


def section(heading: str) -> str:
    return GUIDE.partition(f"### {heading}\n")[2].partition("\n## ")[0].partition("\n### ")[0]


def uploaded(heading: str) -> set[str]:
    """The files that the commands below a heading bring."""
    names = re.findall(r"lambda-comfyui provision (\S+)", section(heading))
    manifests = [read_manifest(find_manifest(name), Settings()) for name in names]
    return {file.name for manifest in manifests for file in manifest.files}


@pytest.mark.parametrize(
    ("profile", "name"),
    [
        ("sd15", "direct_sd15"),
        ("wan22", "direct_wan22_t2v"),
        ("wan22-streaming", "direct_wan22_t2v"),
    ],
)
def test_guide_brings_the_weights_that_the_sample_of_a_profile_loads(
    profile: str, name: str
) -> None:
    assert weights_of(sample(name)) <= uploaded(f"Weights for {profile}")


@pytest.mark.parametrize(
    ("profile", "folder"), [("sd15", "sd15"), ("wan22", "wan22"), ("wan22-streaming", "wan22")]
)
def test_guide_uploads_the_weights_of_a_profile_alone_and_to_its_prefix(
    profile: str, folder: str
) -> None:
    given = tomllib.loads(CONFIG)[profile]["deploy"]["parameters"]["parameter_overrides"]
    # What the file system of infra/weights.yaml shows is below models/.
    prefix = dict(item.split("=", 1) for item in given).get("ModelsPrefix", "models")
    commands = section(f"Weights for {profile}")

    assert f"MODELS_DIR=$PWD/weights/{folder} .venv/bin/lambda-comfyui provision" in commands
    assert re.search(rf"^aws s3 sync weights/{folder} s3://\S+/{prefix}$", commands, re.MULTILINE)


def test_shell_of_the_guide_reads_region_and_stack_from_the_profile(tmp_path: Path) -> None:
    (tmp_path / "samconfig.toml").write_text(CONFIG.replace("FILL_IN", "eu-west-1"))
    function = re.search(r"^setting\(\) .*?^print.*?$", GUIDE, re.MULTILINE | re.DOTALL)
    assert function
    script = f"PROFILE=wan22\n{function.group()}\nsetting region; setting stack_name"

    done = subprocess.run(
        ["bash", "-eu", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == ["eu-west-1", "lambda-comfyui-wan22"]


def test_every_deployment_in_the_guide_names_its_profile() -> None:
    deployments = re.findall(r"sam deploy .*", GUIDE)

    assert deployments
    assert all("--config-env $PROFILE" in line for line in deployments)
