"""A machine that breaks while it works off a queue: no good job fails for good because of it.

All parts are real except SQS, which is moto's server, and the broken GPU, which is a node with
CUDA's words.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from runtime.local_s3 import LocalS3
from tests import workflows
from tests.aws import objects_in
from tests.processes import wait_until
from tests.test_queue_pipeline import Machine, Queues, machine, queues
from tests.workflows import event, node

__all__ = ["queues"]

MAY_MOUNT = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
needs_mount = pytest.mark.skipif(
    MAY_MOUNT.returncode != 0 and "CI" not in os.environ,
    reason="a small disk needs root and a mount namespace of its own",
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

JOBS = 8
PATIENCE_S = 200.0
EXIT_UNFIT = 3
BAD = json.dumps(event(workflows.one("TestRaise", message="no"), request_id="bad"))


def send_jobs(queues: Queues, device_fault: Path | None = None) -> list[str]:
    """Send good jobs, each with an image; return their ids. They compute on a `TestDevice`."""
    ids = [f"good-{number}" for number in range(JOBS)]
    for number, request_id in enumerate(ids):
        device = node("TestDevice", file=str(device_fault or ""), number=number)
        queues.send(json.dumps(event(workflows.image() | {"7": device}, request_id=request_id)))
    return ids


def jobs_with_images(s3: LocalS3) -> set[str]:
    return {key.partition("/")[0] for key in objects_in(s3) if key.endswith(".png")}


class SmallDisk:
    """A disk of a few megabytes for the data of a machine's ComfyUI, which only it sees."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "data"
        self.folder.mkdir()
        mount = f"mount -t tmpfs -o size=16m none {self.folder}"
        self.prefix = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh"]

    def fill(self, owner: Machine) -> None:
        free = shutil.disk_usage(self._filler(owner).parent).free
        self._filler(owner).write_bytes(bytes(free))

    def empty(self, owner: Machine) -> None:
        self._filler(owner).unlink()

    def _filler(self, owner: Machine) -> Path:
        return Path(f"/proc/{owner.process.pid}/root{self.folder}/filler")


def is_ready(running: Machine) -> bool:
    return "host: ready" in running.log


def test_machine_with_a_sticky_device_fault_ends_and_leaves_the_jobs_to_others(
    tmp_path: Path, queues: Queues, s3: LocalS3
) -> None:
    fault = tmp_path / "fault"
    fault.write_text("for good")
    ids = send_jobs(queues, fault)

    with machine(tmp_path, "broken", queues, s3) as broken:
        assert broken.process.wait(PATIENCE_S) == EXIT_UNFIT, broken.log

    assert "host: this machine is unfit for jobs, nothing more is taken: node 7" in broken.log
    assert "CUDA error: an illegal memory access" in broken.log.rpartition("is unfit for jobs")[2]
    assert queues.dead_letters() == {}
    assert queues.count() == JOBS
    fault.unlink()
    with machine(tmp_path, "sound", queues, s3) as sound:
        assert wait_until(lambda: queues.count() == 0, PATIENCE_S), sound.log
    assert jobs_with_images(s3) == set(ids)
    assert queues.dead_letters() == {}


def test_device_that_is_sound_after_a_restart_costs_no_job_and_a_bad_job_still_fails(
    tmp_path: Path, queues: Queues, s3: LocalS3
) -> None:
    fault = tmp_path / "fault"
    fault.write_text("until restart")
    queues.send(BAD)
    ids = send_jobs(queues, fault)
    queues.send(BAD.replace("bad", "bad-2"))

    with machine(tmp_path, "sole", queues, s3) as sole:
        assert wait_until(lambda: queues.count() == 0, PATIENCE_S), sole.log
        assert sole.process.poll() is None
        # Jobs of both handlers may have met the fault before ComfyUI was replaced.
        assert sole.log.count("worker ready -> starting") == 1

    assert jobs_with_images(s3) == set(ids)
    assert set(queues.dead_letters().values()) == {"ExecutionFailed"}


@needs_mount
def test_machine_with_a_full_disk_ends_and_leaves_the_jobs_to_others(
    tmp_path: Path, queues: Queues, s3: LocalS3
) -> None:
    disk = SmallDisk(tmp_path)
    with machine(tmp_path, "full", queues, s3, disk.prefix) as full:
        assert wait_until(lambda: is_ready(full), PATIENCE_S), full.log
        disk.fill(full)
        ids = send_jobs(queues)
        assert full.process.wait(PATIENCE_S) == EXIT_UNFIT, full.log

    assert "No space left on device" in full.log.rpartition("is unfit for jobs")[2]
    assert queues.dead_letters() == {}
    assert queues.count() == JOBS
    with machine(tmp_path, "sound", queues, s3) as sound:
        assert wait_until(lambda: queues.count() == 0, PATIENCE_S), sound.log
    assert jobs_with_images(s3) == set(ids)
    assert queues.dead_letters() == {}


@needs_mount
def test_disk_that_is_full_for_a_moment_costs_no_job_and_no_machine(
    tmp_path: Path, queues: Queues, s3: LocalS3
) -> None:
    disk = SmallDisk(tmp_path)
    with machine(tmp_path, "sole", queues, s3, disk.prefix) as sole:
        assert wait_until(lambda: is_ready(sole), PATIENCE_S), sole.log
        disk.fill(sole)
        ids = send_jobs(queues)
        assert wait_until(lambda: "self-test has found a problem" in sole.log, PATIENCE_S)
        disk.empty(sole)
        assert wait_until(lambda: queues.count() == 0, PATIENCE_S), sole.log
        assert sole.process.poll() is None

    assert jobs_with_images(s3) == set(ids)
    assert queues.dead_letters() == {}
