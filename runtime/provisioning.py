"""What `provision` does beside the models: the benchmark's workflow, and a script of the user's.

A URL may end with `#sha256=HASH`, as pip writes the hash of a file
(https://pip.pypa.io/en/stable/topics/secure-installs/); that of a script must.
"""

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from handler.settings import Settings
from runtime.errors import LambdaComfyUIError, UsageError
from runtime.log import log
from runtime.models.download import Downloader
from runtime.models.manifest import ModelFile
from runtime.models.sources import shown

_SCHEMES = ("https://", "http://", "s3://", "hf://")
_HASH = re.compile(r"(.+)#sha256=([0-9a-f]{64})")


class ProvisioningError(LambdaComfyUIError):
    """The script of PROVISIONING_SCRIPT has failed, or what a URL leads to cannot be used."""

    exit_status = 20


class PinError(UsageError):
    """PROVISIONING_SCRIPT is no script that can be run."""


def put_benchmark(settings: Settings) -> None:
    """Fetch BENCHMARK_JSON_URL, if it is set. Raises DownloadError or ProvisioningError."""
    if not settings.benchmark_json_url:
        return
    url, sha256 = _split(settings.benchmark_json_url)
    target = settings.provisioned_benchmark
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        new = Path(folder) / "workflow.json"
        _fetch("BENCHMARK_JSON_URL", url, sha256, new, settings)
        try:
            is_object = isinstance(json.loads(new.read_text("utf-8")), dict)
        except ValueError:
            is_object = False
        if not is_object:
            raise ProvisioningError(f"BENCHMARK_JSON_URL: {shown(url)} is not a workflow in JSON")
        new.replace(target)
    log(f"benchmark workflow: {target}")


def run_script(settings: Settings, environ: Mapping[str, str]) -> None:
    """Run PROVISIONING_SCRIPT, if it is set, with this environment and this process's output.

    A script that is not executable is run by sh. Raises PinError, DownloadError or
    ProvisioningError.
    """
    given = settings.provisioning_script
    if not given:
        return
    if not given.startswith(_SCHEMES):
        _run(Path(given).expanduser().absolute(), environ)
        return
    url, sha256 = _split(given)
    if sha256 is None:
        raise PinError(
            f"PROVISIONING_SCRIPT: {shown(url)} has no hash, and what a server sends may change:"
            " append #sha256=HASH, the output of `sha256sum` for the script"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "provisioning.sh"
        _fetch("PROVISIONING_SCRIPT", url, sha256, path, settings)
        _run(path, environ)


def _run(path: Path, environ: Mapping[str, str]) -> None:
    if not path.is_file():
        raise PinError(f"PROVISIONING_SCRIPT: there is no file {path}")
    command = [str(path)] if os.access(path, os.X_OK) else ["sh", str(path)]
    log(f"provisioning script: {path.name} runs")
    try:
        status = subprocess.run(command, env=dict(environ), check=False).returncode
    except OSError as error:
        raise ProvisioningError(f"PROVISIONING_SCRIPT: {path}: {error.strerror}") from error
    if status:
        raise ProvisioningError(f"PROVISIONING_SCRIPT: {path.name} ended with status {status}")


def _split(given: str) -> tuple[str, str | None]:
    """The URL and its hash."""
    found = _HASH.fullmatch(given)
    return (found[1], found[2]) if found else (given, None)


def _fetch(setting: str, url: str, sha256: str | None, target: Path, settings: Settings) -> None:
    """Raises DownloadError, whose message names the setting instead of the temporary file."""
    file = ModelFile(name=target.name, folder=".", sources=(url,), sha256=sha256)
    with Downloader(settings) as downloader:
        downloader.add(file, target)
        downloader.wait([target])
        if error := downloader.state(target).error:
            reason = str(error).removeprefix(f"{file.folder}/{file.name}: ")
            raise type(error)(f"{setting}: {reason}") from error
