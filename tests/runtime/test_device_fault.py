"""What the facts of a device mean: jobs can run on it, or not, and what to do then."""

from dataclasses import replace

import pytest

from handler.start_report import Device
from runtime.worker.device_fault import device_fault, has_kernels

NO_KERNELS = (
    "AcceleratorError: CUDA error: no kernel image is available for execution on the device"
)
H100 = Device(
    kind="cuda",
    name="NVIDIA H100 80GB HBM3",
    torch="2.14.1+cu130",
    cuda="13.0",
    rocm="",
    driver="580.65.06",
    capability="9.0",
    kernels=("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"),
    free_bytes=80 << 30,
    total_bytes=80 << 30,
    problem="",
)
NO_GPU = replace(
    H100, name="", capability="", kernels=(), free_bytes=None, total_bytes=None, driver=""
)
CPU = replace(NO_GPU, kind="cpu")


@pytest.mark.parametrize(
    "device",
    [
        H100,
        CPU,
        replace(CPU, problem="RuntimeError: not of this module's concern"),
        replace(H100, kind="xpu", problem="a GPU of which nothing is known here"),
        # It computes: kernels that the list does not show were compiled from PTX.
        replace(H100, capability="12.0", kernels=("sm_90",)),
    ],
)
def test_jobs_run_on_a_device_that_computes_or_is_no_nvidia_gpu(device: Device) -> None:
    assert device_fault(device) == ""


@pytest.mark.parametrize(
    "problem",
    [
        "RuntimeError: CUDA error: out of memory",
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate`",
    ],
)
def test_full_memory_is_a_fault_only_if_the_memory_is_not_full(problem: str) -> None:
    assert device_fault(replace(H100, problem=problem, free_bytes=100 << 20)) == ""
    assert device_fault(replace(H100, problem=problem, free_bytes=None, total_bytes=None)) == ""
    assert "does not compute" in device_fault(replace(H100, problem=problem))


@pytest.mark.parametrize(
    ("device", "words"),
    [
        (
            replace(H100, capability="12.0", kernels=("sm_80", "sm_90"), problem=NO_KERNELS),
            ["no kernels for", "capability 12.0", "built for sm_80, sm_90", "--torch cu130"],
        ),
        (
            replace(H100, capability="6.1", problem=NO_KERNELS, driver="535.183.01"),
            ["no kernels for", "--torch cu126"],
        ),
        (
            replace(H100, capability="6.1", problem=NO_KERNELS, driver=""),
            ["Install a build of PyTorch that has them"],
        ),
        (
            replace(NO_GPU, driver="535.183.01", problem="RuntimeError: driver … is too old"),
            ["needs the NVIDIA driver 580", "the driver is 535.183.01", "--torch cu126"],
        ),
        (
            replace(NO_GPU, problem="RuntimeError: No CUDA GPUs are available"),
            ["finds no GPU", "No CUDA GPUs are available", "Start a new container"],
        ),
        (
            replace(NO_GPU, driver="580.65.06", problem="RuntimeError: CUDA unknown error"),
            ["finds no GPU", "CUDA unknown error", "Start a new container"],
        ),
        (
            replace(NO_GPU, cuda="", problem="AssertionError: not compiled with CUDA enabled"),
            ["a build for the CPU", "COMFYUI_ARGS=--cpu"],
        ),
        (
            replace(NO_GPU, cuda="", driver="580.65.06", problem="AssertionError: not compiled"),
            ["a build for the CPU", "580.65.06", "--torch cu130"],
        ),
        (
            replace(NO_GPU, cuda="", rocm="6.4", problem="RuntimeError: No HIP GPUs are available"),
            ["finds no GPU", "No HIP GPUs"],
        ),
        (
            replace(H100, problem="AcceleratorError: uncorrectable ECC error encountered"),
            ["NVIDIA H100 80GB HBM3", "ECC error", "Start a new container", "another machine"],
        ),
        (
            replace(H100, problem="a product of matrices sums to 0.0"),
            ["does not compute: a product of matrices sums to 0.0"],
        ),
    ],
)
def test_fault_is_described_with_what_to_do(device: Device, words: list[str]) -> None:
    fault = device_fault(device)

    assert [each for each in words if each not in fault] == []


@pytest.mark.parametrize(
    ("capability", "kernels", "expected"),
    [
        ("9.0", ("sm_90",), True),
        ("8.9", ("sm_86",), True),
        ("8.0", ("sm_86",), False),
        ("12.0", ("sm_80", "sm_86", "sm_90"), False),
        ("12.0", ("sm_90", "compute_90"), True),
        ("12.0", ("sm_90a", "compute_90a"), False),
        ("9.0", ("sm_90a",), True),
        ("10.3", ("sm_100f",), True),
        ("11.0", ("compute_100f",), False),
        ("7.0", ("compute_75",), False),
        ("12.1", ("sm_120",), True),
        ("11.0", ("gfx1100", "gfx90a"), True),
        ("9.0", (), True),
        ("", ("sm_90",), True),
    ],
)
def test_kernels_run_by_the_rules_of_compute_capabilities(
    capability: str, kernels: tuple[str, ...], expected: bool
) -> None:
    assert has_kernels(capability, kernels) is expected
