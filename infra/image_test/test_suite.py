"""Tests of the project inside the image: on its Python, its packages and its ComfyUI."""

import subprocess
from pathlib import Path

import pytest

from infra.image_test.containers import NO_NETWORK, PROJECT, READ_ONLY

TESTS = ("tests/events", "tests/handler", "tests/test_hostile_events.py")
# What the tests read beside the code, which the image has.
READ = ("tests", "docs", "template.yaml", "README.md", "LICENSE")


def test_tests_of_events_handler_and_hostile_events_pass_inside(
    test_packages: Path, standins_image: str
) -> None:
    # The last one is where runtime/local_s3.py looks for it.
    mounts = [
        *(f"{PROJECT / name}:/var/task/{name}:ro" for name in READ),
        f"{test_packages}:/packages:ro",
        f"{test_packages}/bin/rclone:/opt/handler/bin/rclone:ro",
    ]
    options = ["-p", "no:cacheprovider", "-q", "-rfE", "--tb=short"]
    options += ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]

    done = subprocess.run(
        [
            *("podman", "run", "--rm", *READ_ONLY, *NO_NETWORK),
            *(word for mount in mounts for word in ("--volume", mount)),
            *("--env", "PYTHONPATH=/packages", "--entrypoint", "/opt/handler/bin/python"),
            *(standins_image, "-m", "pytest", *options, *TESTS),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )

    lines = done.stdout.rstrip().splitlines()
    print(lines[-1])
    if done.returncode:
        pytest.fail("\n".join(lines[-200:]), pytrace=False)
