"""What AWS's own tools say to template.yaml and samconfig.toml, as strictly as they can."""

import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from handler.settings import PROJECT, Settings
from runtime.models.manifest import find_manifest, read_manifest
from tests.aws import moto_server
from tests.infra.template import needs_sam, parameter, run_tool, template

pytestmark = [needs_sam, pytest.mark.slow]

PROFILES = ("sd15", "wan22", "wan22-streaming")
REGION = "eu-west-1"  # not the one of run_tool's environment
# vCPU and GiB of the instance types in the profiles.
INSTANCES = {"g6.xlarge": (4, 16), "g6.2xlarge": (8, 32), "g6e.2xlarge": (8, 64)}
HOST_VCPU, HOST_GIB = 1, 1


@dataclass(frozen=True, slots=True)
class Slip:
    """A mistake in the template, and the rule of cfn-lint that it breaks."""

    name: str
    right: str
    wrong: str
    rule: str


SLIPS = (
    Slip(
        "warning",
        right="AllowedValues: [3, 6, 12, 16, 24, 48]",
        wrong="AllowedValues: [24, 25]",
        rule="W1030",
    ),
    Slip(
        "value",
        right="AcceleratorMemorySize: !Ref AcceleratorMemoryGiB",
        wrong="AcceleratorMemorySize: 25",
        rule="E3030",
    ),
    Slip("key", right="AcceleratorMemorySize:", wrong="AcceleratorMemorySise:", rule="E3003"),
    Slip("accelerator", right="AcceleratorConfig:", wrong="AcceleratorConfg:", rule="E3002"),
    Slip("scaling", right="FunctionScalingConfig:", wrong="FunctionScalingConfg:", rule="E3002"),
)


def overrides(profile: str) -> dict[str, str]:
    config = tomllib.loads((PROJECT / "samconfig.toml").read_text())
    given = config[profile]["deploy"]["parameters"]["parameter_overrides"]
    return dict(item.split("=", 1) for item in given)


@pytest.mark.parametrize("options", [(), ("--lint",)], ids=["basic", "lint"])
def test_sam_accepts_the_template(options: tuple[str, ...]) -> None:
    done = run_tool("sam", "validate", *options)

    assert done.returncode == 0, done.stdout + done.stderr


def with_slip(slip: Slip, folder: Path) -> Path:
    """A copy of the template in which the slip is made."""
    text = (PROJECT / "template.yaml").read_text()
    assert slip.right in text
    broken = folder / f"{slip.name}.yaml"
    broken.write_text(text.replace(slip.right, slip.wrong))
    return broken


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, str]]:
    """What one run of cfn-lint over all slips says: the name of each slip, and the broken rule."""
    folder = tmp_path_factory.mktemp("slips")
    paths = [with_slip(slip, folder) for slip in SLIPS]
    done = run_tool("cfn-lint", "--format", "json", "--template", *paths)
    return {(Path(item["Filename"]).stem, item["Rule"]["Id"]) for item in json.loads(done.stdout)}


@pytest.mark.parametrize("slip", SLIPS, ids=[slip.name for slip in SLIPS])
def test_lint_catches_a_slip(slip: Slip, findings: set[tuple[str, str]]) -> None:
    assert (slip.name, slip.rule) in findings


def test_sam_refuses_a_template_in_which_lint_finds_a_slip(tmp_path: Path) -> None:
    slip = SLIPS[0]

    done = run_tool("sam", "validate", "--lint", "--template-file", with_slip(slip, tmp_path))

    assert done.returncode == 1
    assert f"[{slip.rule}:" in done.stdout + done.stderr


@pytest.mark.parametrize("profile", PROFILES)
def test_profile_names_parameters_within_their_limits(profile: str) -> None:
    for name, value in overrides(profile).items():
        if value == "FILL_IN":
            continue
        limits = parameter(name)
        assert value in [str(allowed) for allowed in limits.get("AllowedValues", [value])]
        if limits["Type"] == "Number":
            assert limits.get("MinValue", 0) <= int(value) <= limits.get("MaxValue", int(value))


def values(profile: str) -> dict[str, Any]:
    given: dict[str, Any] = {k: v.get("Default") for k, v in template()["Parameters"].items()}
    return given if profile == "template" else given | overrides(profile)


@pytest.mark.parametrize("profile", [*PROFILES, "template"])
def test_one_long_job_is_no_alarm(profile: str) -> None:
    given = values(profile)

    assert int(given["OldestMessageAlarmSeconds"]) > 2 * int(given["TimeoutSeconds"])


@pytest.mark.parametrize("profile", [*PROFILES, "template"])
def test_environments_fit_their_instances(profile: str) -> None:
    given = values(profile)
    vcpu, gib = INSTANCES[given["InstanceTypes"]]
    memory_gib = int(given["MemoryMiB"]) / 1024
    environments = int(given["MaxEnvironments"])

    assert memory_gib <= gib - HOST_GIB
    assert memory_gib / float(given["MemoryGiBPerVCpu"]) <= vcpu - HOST_VCPU
    # One instance more than needed, so that one can be replaced.
    assert int(given["MaxVCpuCount"]) == vcpu * (environments + 1)
    assert int(given["MaxConcurrentJobs"]) == environments * int(given["JobsPerEnvironment"])


def test_tmp_of_the_streaming_profile_holds_all_models_but_the_text_encoder() -> None:
    """ComfyUI keeps the text encoder in memory when it needs the last of the others."""
    given = values("wan22-streaming")
    manifest = read_manifest(find_manifest(given["ModelManifests"]), Settings())
    sizes = {file.folder: 0 for file in manifest.files}
    for file in manifest.files:
        sizes[file.folder] += file.size_bytes or 0
    usable_bytes = int(given["TmpMiB"]) * 1024**2 - Settings().clean_below_mb * 1_000_000

    assert sum(sizes.values()) > usable_bytes
    assert sum(sizes.values()) - sizes["text_encoders"] < usable_bytes


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, moto_server(patch) as url:
        yield url


def copy_project(folder: Path, region: str) -> None:
    """The template and the profiles, for this Region, as far as moto takes them."""
    config = (PROJECT / "samconfig.toml").read_text()
    (folder / "samconfig.toml").write_text(
        config.replace('region = "FILL_IN"', f'region = "{region}"')
    )
    # moto has neither SAM's own bucket nor templates in other buckets of a local server.
    code = "Code: {S3Bucket: code, S3Key: api.zip}"
    text = (PROJECT / "template.yaml").read_text()
    (folder / "template.yaml").write_text(text.replace("Code: build/api", code))


def stacks(region: str, url: str) -> list[str]:
    client = boto3.client("cloudformation", region, endpoint_url=url)
    return [stack["StackName"] for stack in client.describe_stacks()["Stacks"]]


@pytest.mark.parametrize("profile", PROFILES)
def test_sam_deploy_makes_a_change_set_in_the_region_of_the_profile(
    profile: str, moto_url: str, tmp_path: Path
) -> None:
    copy_project(tmp_path, REGION)

    done = run_tool(
        "sam",
        *("deploy", "--config-env", profile, "--no-confirm-changeset", "--no-execute-changeset"),
        "--no-resolve-s3",
        endpoint_url=moto_url,
        cwd=tmp_path,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Changeset created successfully" in done.stdout
    assert f"lambda-comfyui-{profile}" in stacks(REGION, moto_url)
    assert f"lambda-comfyui-{profile}" not in stacks("us-east-1", moto_url)


@pytest.mark.parametrize("profile", PROFILES)
def test_profile_that_is_not_filled_in_stops_before_any_call(profile: str, moto_url: str) -> None:
    done = run_tool("sam", "deploy", "--config-env", profile, endpoint_url=moto_url)

    assert done.returncode == 1
    assert "region: FILL_IN" in done.stderr
    assert stacks("us-east-1", moto_url) == []


def test_deployment_without_a_profile_stops() -> None:
    done = run_tool("sam", "deploy")

    assert done.returncode == 2
    assert "Missing option '--stack-name'" in done.stderr


@pytest.mark.parametrize("profile", PROFILES)
def test_no_parameter_takes_what_is_not_filled_in(profile: str) -> None:
    left = [name for name, value in overrides(profile).items() if value == "FILL_IN"]

    assert left[:3] == ["ImageUri", "SubnetIds", "SecurityGroupIds"]
    for name in left:
        limits = parameter(name)
        # CloudFormation looks for the ids of a type of EC2 in the account.
        if "AWS::EC2::" not in limits["Type"]:
            assert not re.search(limits["AllowedPattern"], "FILL_IN"), name
