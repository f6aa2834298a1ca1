"""The workers of one host: one for each GPU, each with a ComfyUI, folders and a socket of its own.

They are the environments of the host (host.py), as on Lambda, where each environment has a GPU.
docs/decisions/0014-one-worker-per-gpu.md says why.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from handler.settings import Settings
from handler.worker_protocol import SOCKET_NAME
from runtime.errors import UsageError

_VISIBLE = "CUDA_VISIBLE_DEVICES"


class PoolError(UsageError):
    """The workers cannot be told apart, or lack a GPU; the message names the setting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledWorker:
    """One worker: its socket, and the variables of its environment beside the host's own."""

    socket: Path
    variables: Mapping[str, str]


def pooled_workers(settings: Settings, environ: Mapping[str, str]) -> Sequence[PooledWorker]:
    """One worker for each GPU, or GPUS many; one if there is no GPU. Raises PoolError.

    One of several workers may fail while the others go on: they write no lines to PYWORKER_LOG.
    The first one uses the folders and the port of the settings. The others have theirs in `gpu-N`
    and the next ports, or any ports if none is set. They share the first one's input folder, into
    which the HTTP API puts uploads, and the workflow that `provision` has fetched for benchmarks.
    Makes the folders that they share.
    """
    devices = _devices(environ)
    count = settings.gpus or max(len(devices), 1)
    if devices and count > len(devices):
        raise PoolError(f"GPUS is {count}, but there are {len(devices)}: {', '.join(devices)}")
    if count == 1 and not settings.gpus:
        return [PooledWorker(socket=settings.worker_dir / SOCKET_NAME, variables={})]
    common = {"PYWORKER_LOG": ""} if count > 1 else {}
    return [_worker(settings, number, devices, common) for number in range(count)]


def _worker(
    settings: Settings, number: int, devices: Sequence[str], common: Mapping[str, str]
) -> PooledWorker:
    variables = dict(common)
    if devices:
        # The numbers of CUDA and of nvidia-smi are the same in the order of the bus:
        # https://docs.nvidia.com/cuda/cuda-c-programming-guide/, "CUDA Environment Variables".
        variables |= {_VISIBLE: devices[number], "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    if number == 0:
        return PooledWorker(socket=settings.worker_dir / SOCKET_NAME, variables=variables)
    name = f"gpu-{number}"
    worker_dir, data = settings.worker_dir / name, settings.comfyui_data / name
    own = replace(settings, worker_dir_given=worker_dir, comfyui_data_dir=data)
    _make_folders(settings, own)
    port = settings.comfyui_port + number if settings.comfyui_port else 0
    variables |= {
        "WORKER_DIR": str(worker_dir),
        "COMFYUI_DATA_DIR": str(data),
        "COMFYUI_PORT": str(port),
    }
    return PooledWorker(socket=worker_dir / SOCKET_NAME, variables=variables)


def _make_folders(first: Settings, own: Settings) -> None:
    """The folders of a worker with the settings `own`, and its links to what all of them share."""
    try:
        for folder in (first.worker_dir, own.worker_dir):
            # One by one, because the mode is that of the last folder alone.
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        shared = first.comfyui_data / "input"
        shared.mkdir(parents=True, exist_ok=True)
        own.comfyui_data.mkdir(parents=True, exist_ok=True)
        _link(own.comfyui_data / "input", shared)
        _link(own.provisioned_benchmark, first.provisioned_benchmark)
    except OSError as error:
        raise PoolError(
            f"the folders of several workers cannot be made: {error}; set WORKER_DIR and"
            " COMFYUI_DATA_DIR to folders that this user can write, or GPUS=1"
        ) from error


def _link(link: Path, target: Path) -> None:
    if link.is_symlink() and link.readlink() != target:
        # The folder was moved since.
        link.unlink()
    if not link.is_symlink():
        link.symlink_to(target)


def _devices(environ: Mapping[str, str]) -> Sequence[str]:
    """What CUDA_VISIBLE_DEVICES may name: its own items if it is set, else a number for each GPU.

    A container sees only the device files of its own GPUs, and CUDA numbers those from 0.
    """
    if _VISIBLE in environ:
        items = [item.strip() for item in environ[_VISIBLE].split(",")]
        return [item for item in items if item not in ("", "-1")]
    return [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
