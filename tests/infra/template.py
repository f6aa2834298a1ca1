"""template.yaml as a dictionary, and the calls of SAM CLI that its tests share."""

import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cfnlint.decode import cfn_yaml

from handler.settings import PROJECT

SAM_VENV = PROJECT / ".venv-sam" / "bin"
needs_sam = pytest.mark.skipif(
    not (SAM_VENV / "sam").exists() and "CI" not in os.environ,
    reason="SAM CLI is not installed: run `make sam-validate` once",
)


@cache
def template() -> dict[str, Any]:
    """The template, with `!Ref` and the like as `{"Ref": …}`."""
    loaded: dict[str, Any] = cfn_yaml.load(str(PROJECT / "template.yaml"))
    return loaded


def properties(resource: str) -> dict[str, Any]:
    found: dict[str, Any] = template()["Resources"][resource]["Properties"]
    return found


def parameter(name: str) -> dict[str, Any]:
    found: dict[str, Any] = template()["Parameters"][name]
    return found


def variables() -> dict[str, Any]:
    """The environment of the function."""
    found: dict[str, Any] = properties("ComfyUI")["Environment"]["Variables"]
    return found


def run_tool(
    tool: str, *arguments: str | Path, endpoint_url: str = "", cwd: Path = PROJECT
) -> subprocess.CompletedProcess[str]:
    """Run a tool of SAM's environment; without an endpoint it gets nowhere near AWS."""
    environment = {
        **os.environ,
        "SAM_CLI_TELEMETRY": "0",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
    }
    if endpoint_url:
        environment["AWS_ENDPOINT_URL"] = endpoint_url
    return subprocess.run(
        [SAM_VENV / tool, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
