"""Who starts and stops the machines of a fleet: a script, or an EC2 Auto Scaling group."""

import shlex
import subprocess
from collections.abc import Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

from runtime.errors import LambdaComfyUIError
from runtime.fleet.registry import Worker

_SCRIPT_S = 120.0


class MachinesError(LambdaComfyUIError):
    """Machines could not be started or stopped; the message says why."""


class Machines(Protocol):
    """Both methods raise MachinesError."""

    def start(self, count: int) -> None:
        """Start so many more machines, each of which then reports as a worker."""

    def stop(self, worker: Worker) -> None:
        """Stop the machine of this worker, which is idle."""


class CommandMachines:
    """Runs `<command> start <count>` and `<command> stop <url of the worker>`."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command

    def start(self, count: int) -> None:
        self._run("start", str(count))

    def stop(self, worker: Worker) -> None:
        self._run("stop", worker.url)

    def _run(self, *arguments: str) -> None:
        command = [*self._command, *arguments]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_SCRIPT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise MachinesError(f"{shlex.join(command)}: {error}") from error
        if done.returncode:
            last = done.stderr.strip().rpartition("\n")[2]
            raise MachinesError(f"{shlex.join(command)}: status {done.returncode}, {last}")


class AutoScalingGroup:
    """The group of this name. Instances are found by the host of their worker's PUBLIC_URL.

    Needs autoscaling:DescribeAutoScalingGroups, SetDesiredCapacity and
    TerminateInstanceInAutoScalingGroup, and ec2:DescribeInstances.
    """

    def __init__(self, name: str) -> None:
        import boto3  # noqa: PLC0415 - only where a group is named

        session = boto3.session.Session()
        self._name = name
        self._scaling, self._ec2 = session.client("autoscaling"), session.client("ec2")

    def start(self, count: int) -> None:
        try:
            group = self._group()
            wanted = min(group["DesiredCapacity"] + count, group["MaxSize"])
            self._scaling.set_desired_capacity(
                AutoScalingGroupName=self._name, DesiredCapacity=wanted
            )
        except Exception as error:
            raise self._failed("start", error) from error

    def stop(self, worker: Worker) -> None:
        try:
            self._scaling.terminate_instance_in_auto_scaling_group(
                InstanceId=self._instance_of(worker), ShouldDecrementDesiredCapacity=True
            )
        except MachinesError:
            raise
        except Exception as error:
            raise self._failed("stop", error) from error

    def _group(self) -> dict[str, Any]:
        answer = self._scaling.describe_auto_scaling_groups(AutoScalingGroupNames=[self._name])
        groups: list[dict[str, Any]] = answer["AutoScalingGroups"]
        if not groups:
            raise MachinesError(f"there is no Auto Scaling group {self._name}")
        return groups[0]

    def _instance_of(self, worker: Worker) -> str:
        host = urlsplit(worker.url).hostname
        ids = [instance["InstanceId"] for instance in self._group()["Instances"]]
        answer = self._ec2.describe_instances(InstanceIds=ids) if ids else {"Reservations": []}
        for reservation in answer["Reservations"]:
            for instance in reservation["Instances"]:
                names = ("PrivateIpAddress", "PublicIpAddress", "PrivateDnsName", "PublicDnsName")
                if host in [instance.get(name) for name in names]:
                    return str(instance["InstanceId"])
        raise MachinesError(f"no instance of the group {self._name} has the address {worker.url}")

    def _failed(self, what: str, error: Exception) -> MachinesError:
        return MachinesError(f"the Auto Scaling group {self._name} did not {what}: {error}")


def machines_of(setting: str) -> Machines | None:
    """The machines of SCALE_MACHINES: `none`, `group NAME`, or a command with its arguments.

    Raises MachinesError for a text that is no command.
    """
    try:
        words = shlex.split(setting)
    except ValueError as error:
        raise MachinesError(f"SCALE_MACHINES is no command: {error}") from None
    if not words:
        raise MachinesError("SCALE_MACHINES is no command: it is empty")
    if words == ["none"]:
        return None
    if words[0] == "group" and len(words) == 2:
        return AutoScalingGroup(words[1])
    return CommandMachines(words)
