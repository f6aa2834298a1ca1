"""Starting and stopping the machines of a fleet: by a command, by an Auto Scaling group (moto)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from runtime.fleet.machines import AutoScalingGroup, CommandMachines, MachinesError, machines_of
from runtime.fleet.registry import Status, Worker
from tests.aws import moto_server

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

GROUP = "gpus"


def worker(url: str) -> Worker:
    return Worker(id=1, url=url, status=Status.INACTIVE, score=1.0, joined_at=0.0, reported_at=0.0)


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of an account with a group of one instance, three at most."""
    with moto_server(monkeypatch):
        session = boto3.session.Session()
        (image, *_) = session.client("ec2").describe_images()["Images"]
        client = session.client("autoscaling")
        client.create_launch_configuration(
            LaunchConfigurationName="gpu", ImageId=image["ImageId"], InstanceType="g5.xlarge"
        )
        client.create_auto_scaling_group(
            AutoScalingGroupName=GROUP,
            LaunchConfigurationName="gpu",
            MinSize=0,
            MaxSize=3,
            DesiredCapacity=1,
            AvailabilityZones=["us-east-1a"],
        )
        yield client


def instances(client: Any) -> list[str]:
    (group,) = client.describe_auto_scaling_groups(AutoScalingGroupNames=[GROUP])[
        "AutoScalingGroups"
    ]
    assert group["DesiredCapacity"] == len(group["Instances"])
    return [each["InstanceId"] for each in group["Instances"]]


def test_group_grows_up_to_its_own_limit(group: Any) -> None:
    machines = AutoScalingGroup(GROUP)

    machines.start(1)
    assert len(instances(group)) == 2
    machines.start(5)
    assert len(instances(group)) == 3


def test_instance_of_the_worker_is_stopped_and_not_replaced(group: Any) -> None:
    machines = machines_of(f"group {GROUP}")
    assert machines
    machines.start(1)
    stopped, other = instances(group)
    ec2 = boto3.session.Session().client("ec2")
    (reservation,) = ec2.describe_instances(InstanceIds=[stopped])["Reservations"]
    address = reservation["Instances"][0]["PrivateIpAddress"]

    machines.stop(worker(f"http://{address}:18288"))

    assert instances(group) == [other]


def test_worker_of_another_group_is_not_stopped(group: Any) -> None:
    with pytest.raises(MachinesError, match="no instance of the group gpus has the address"):
        AutoScalingGroup(GROUP).stop(worker("http://192.0.2.1:18288"))

    assert len(instances(group)) == 1


@pytest.mark.usefixtures("group")
def test_group_that_does_not_exist_is_named() -> None:
    with pytest.raises(MachinesError, match="there is no Auto Scaling group other"):
        AutoScalingGroup("other").start(1)


def test_command_gets_what_to_do(tmp_path: Path) -> None:
    said = tmp_path / "said"
    machines = machines_of(f"sh -c 'echo \"$0 $1\" >> {said}'")
    assert isinstance(machines, CommandMachines)

    machines.start(2)
    machines.stop(worker("http://worker"))

    assert said.read_text() == "start 2\nstop http://worker\n"


def test_command_that_fails_is_named() -> None:
    with pytest.raises(MachinesError, match=r"status 3, no quota$"):
        CommandMachines(["sh", "-c", "echo no quota >&2; exit 3"]).start(1)
    with pytest.raises(MachinesError, match="No such file"):
        CommandMachines(["/nonexistent"]).start(1)


@pytest.mark.parametrize(
    ("setting", "reason"), [(" ", "it is empty"), ("sh 'start", "No closing quotation")]
)
def test_text_that_is_no_command_is_named(setting: str, reason: str) -> None:
    with pytest.raises(MachinesError, match=f"^SCALE_MACHINES is no command: {reason}$"):
        machines_of(setting)


def test_fleet_may_have_no_machines_to_start() -> None:
    assert machines_of("none") is None
