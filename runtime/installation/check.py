"""The last step: PyTorch and ComfyUI start, and a PyTorch that cannot use the GPU is explained."""

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from runtime.installation.command import InstallError, run_command
from runtime.installation.driver import driver_problem, installed_driver
from runtime.installation.source import version_in
from runtime.log import log

PYTORCH = (
    "import json, torch; gpu = torch.cuda.is_available() and torch.cuda.get_device_name() or None;"
    " print(json.dumps({'torch': torch.__version__, 'cuda': torch.version.cuda, 'gpu': gpu}))"
)
# It loads every node of ComfyUI itself, and ends. Packages of nodes are loaded by the worker.
START = ("main.py", "--cpu", "--quick-test-for-ci", "--disable-all-custom-nodes")


@dataclass(frozen=True, slots=True)
class PyTorchReport:
    """What ComfyUI's Python says of PyTorch. `cuda` and `gpu` are None for a build for the CPU."""

    torch: str
    cuda: str | None
    gpu: str | None


def check(python: Path, tree: Path) -> None:
    """Start both, and print one line of JSON. Raises InstallError."""
    hint = f"delete {python.parent.parent}, install again"
    report = _report_in(run_command([python, "-c", PYTORCH], hint=hint), hint)
    start_comfyui(python, tree)
    driver = installed_driver()
    if driver and not report.gpu:
        log(explanation(driver, report))
    comfyui = {"comfyui": version_in(tree), **asdict(report), "driver": driver}
    print(json.dumps(comfyui), flush=True)


def _report_in(output: str, hint: str) -> PyTorchReport:
    """The report in the last line: warnings of torch come first. Raises InstallError."""
    lines = output.rstrip().splitlines()
    try:
        return PyTorchReport(**json.loads(lines[-1]))
    except (IndexError, ValueError, TypeError) as error:
        raise InstallError(
            "PyTorch was imported, but the last line of its output is not the report of its"
            f" versions:\n    {lines[-1] if lines else '(no output)'}\nTry: {hint}."
        ) from error


def start_comfyui(python: Path, tree: Path) -> None:
    """Start ComfyUI on the CPU until its nodes are loaded. Raises InstallError.

    It writes into a folder of its own, so that nothing of the user's changes.
    """
    with tempfile.TemporaryDirectory(prefix="lambda-comfyui-") as folder:
        own = ["--base-directory", folder, "--database-url", f"sqlite:///{folder}/comfyui.db"]
        try:
            run_command([python, *START, *own], hint="install its version again", cwd=tree)
        except InstallError as error:
            raise InstallError(f"ComfyUI does not start: {error}") from error


def explanation(driver: str, report: PyTorchReport) -> str:
    """Why PyTorch finds no GPU on a machine with a driver, as far as the versions tell."""
    return driver_problem(driver, report.cuda) or (
        f"PyTorch {report.torch} finds no GPU, although the NVIDIA driver {driver} fits it."
        " Run `nvidia-smi` to see whether this user and this container may use the GPU."
    )
