"""The builds of PyTorch: which there are, and where pip gets each.

The build on PyPI is pinned in the lock file. The others are in an index for each CUDA version, as
https://pytorch.org/get-started/locally/ documents: their versions end with `+cu126`, `+cpu`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.installation.driver import build_for, installed_driver
from runtime.installation.pins import Pin
from runtime.log import log

PACKAGES = ("torch", "torchvision", "torchaudio")
INDEX = "https://download.pytorch.org/whl/"
# PyTorch on PyPI is built with CUDA 13.0.
OF_PYPI = "cu130"
BUILDS = ("cu126", "cu128", OF_PYPI, "cpu")
# PyTorch has had no build with CUDA 12.8 since 2.12: https://github.com/pytorch/pytorch/pull/194367.
# These are the last that have one, and fit each other.
VERSIONS_OF_BUILD = {"cu128": {"torch": "2.11.0", "torchvision": "0.26.0", "torchaudio": "2.11.0"}}


@dataclass(frozen=True, slots=True)
class PyTorch:
    """What pip installs: entries of the lock, or versions from an index with the packages' pins."""

    build: str
    pins: tuple[Pin, ...]
    from_index: tuple[str, ...] = ()

    @property
    def versions(self) -> tuple[str, ...]:
        """The requirements on torch, torchvision and torchaudio, which nothing may replace."""
        return self.from_index or tuple(str(pin) for pin in self.pins if pin.name in PACKAGES)

    @property
    def index(self) -> str:
        return f"{INDEX}{self.build}"


def pytorch_of(build: str, pins: Sequence[Pin]) -> PyTorch:
    """What a build of BUILDS consists of, if `pins` are those of the lock."""
    if build == OF_PYPI:
        return PyTorch(build, tuple(pin for pin in pins if is_of_pytorch(pin.name)))
    versions = {pin.name: pin.version for pin in pins} | VERSIONS_OF_BUILD.get(build, {})
    return PyTorch(
        build,
        (),
        tuple(f"{name}=={versions[name]}+{build}" for name in PACKAGES if name in versions),
    )


def is_of_pytorch(name: str) -> bool:
    """Whether the version of a package depends on the build of PyTorch."""
    # An older PyTorch does not accept each setuptools.
    return name in (*PACKAGES, "triton", "setuptools") or name.startswith(("cuda-", "nvidia-"))


def build_for_this_machine() -> str:
    """The newest build that this machine's NVIDIA driver runs. That of PyPI if there is none."""
    driver = installed_driver()
    if driver is None:
        return OF_PYPI
    build = build_for(driver)
    log(f"NVIDIA driver {driver}: PyTorch {build}" if build else f"NVIDIA driver {driver}: too old")
    return build or OF_PYPI
