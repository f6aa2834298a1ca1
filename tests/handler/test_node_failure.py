"""What a history entry of ComfyUI means: success, interruption, or the exception of a node."""

import errno
from typing import Any

import pytest

from events.errors import (
    Cancelled,
    ExecutionFailed,
    InvalidRequest,
    ModelUnavailable,
    OutOfMemory,
    WorkerUnavailable,
)
from handler.node_failure import MAX_EXCEPTION_MESSAGE, failure_in


def entry(*messages: tuple[str, dict[str, Any]], completed: bool = False) -> dict[str, Any]:
    """The part of a history entry that says how the run ended."""
    status = "success" if completed else "error"
    return {"status": {"completed": completed, "status_str": status, "messages": [*messages]}}


def node_error(exception_type: str, message: str) -> tuple[str, dict[str, Any]]:
    node = {"node_id": "7", "node_type": "KSampler"}
    error = {"exception_type": exception_type, "exception_message": message}
    return "execution_error", node | error


def test_run_that_went_on_after_an_error_and_succeeded_has_no_failure() -> None:
    went_on = entry(node_error("ValueError", "x"), ("execution_success", {}), completed=True)

    assert failure_in(went_on) is None


def test_error_as_the_last_message_is_a_failure_although_the_entry_says_success() -> None:
    cycle = node_error("graph.DependencyCycleError", "Dependency cycle detected")

    failure = failure_in(entry(("execution_start", {}), cycle, completed=True))

    assert isinstance(failure, ExecutionFailed)
    assert "Dependency cycle detected" in failure.message


def test_entry_without_a_status_is_a_failure() -> None:
    failure = failure_in({"status": {}})

    assert isinstance(failure, ExecutionFailed)
    assert "no status" in failure.message


@pytest.mark.parametrize(
    ("exception_type", "message"),
    [
        ("torch.OutOfMemoryError", "Allocation on device"),
        ("torch.cuda.OutOfMemoryError", ""),
        ("RuntimeError", "CUDA error: out of memory"),
        ("RuntimeError", "[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator"),
        ("RuntimeError", "DefaultCPUAllocator: can't allocate memory: you tried"),
        ("RuntimeError", "DefaultCPUAllocator: not enough memory: you tried"),
    ],
)
def test_lack_of_memory_is_recognised(exception_type: str, message: str) -> None:
    failure = failure_in(entry(node_error(exception_type, message)))

    assert isinstance(failure, OutOfMemory)
    assert failure.retryable
    assert "node 7 (KSampler) ran out of memory" in failure.message


@pytest.mark.parametrize(
    ("exception_type", "message"),
    [
        (
            "RuntimeError",
            "CUDA error: an illegal memory access was encountered\nCUDA kernel errors",
        ),
        ("torch.AcceleratorError", "CUDA error: uncorrectable ECC error encountered"),
        ("RuntimeError", "CUDA error: no kernel image is available for execution on the device"),
        ("RuntimeError", "Found no NVIDIA driver on your system"),
        ("RuntimeError", "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        ("OSError", "[Errno 28] No space left on device: '/tmp/output/a.png'"),
        ("OSError", "[Errno 30] Read-only file system: '/tmp/output'"),
        ("OSError", "[Errno 5] Input/output error"),
        ("safetensors_rust.SafetensorError", "I/O error: No space left on device (os error 28)"),
        ("sqlite3.OperationalError", "database or disk is full"),
        ("MemoryError", ""),
    ],
)
def test_fault_of_the_machine_is_no_failure_of_the_job(exception_type: str, message: str) -> None:
    failure = failure_in(entry(node_error(exception_type, message)))

    assert isinstance(failure, WorkerUnavailable)
    assert failure.retryable
    assert "node 7 (KSampler) met a fault of the machine" in failure.message


@pytest.mark.parametrize(
    ("exception_type", "message"),
    [
        ("ValueError", "out of memory"),
        ("RuntimeError", "no style is called 'CUDA out of memory'"),
        ("KeyError", "CUDA error: device lost"),
        ("FileNotFoundError", "[Errno 2] No such file or directory: 'No space left on device'"),
    ],
)
def test_words_of_a_caller_decide_nothing(exception_type: str, message: str) -> None:
    failure = failure_in(entry(node_error(exception_type, message)))

    assert isinstance(failure, ExecutionFailed)


def caused_by(*causes: tuple[str, str, int | None], self_test: str = "") -> Any:
    """An error whose exception is a TypeError, with these exceptions below it."""
    name, data = node_error("TypeError", "the sampler failed")
    below = [{"types": [kind], "message": text, "errno": errno} for kind, text, errno in causes]
    top = {"types": ["TypeError", "Exception"], "message": "the sampler failed", "errno": None}
    return name, data | {"causes": [top, *below], "self_test": self_test}


def test_exception_below_the_outermost_one_decides() -> None:
    memory = failure_in(entry(caused_by(("torch.OutOfMemoryError", "", None))))
    disk = failure_in(entry(caused_by(("av.error.OSError", "a text", errno.ENOSPC))))
    other = failure_in(entry(caused_by(("KeyError", "'x'", None))))

    assert isinstance(memory, OutOfMemory)
    assert isinstance(disk, WorkerUnavailable)
    assert isinstance(other, ExecutionFailed)
    assert other.message == "node 7 (KSampler) failed: TypeError: the sampler failed"


def test_failed_self_test_makes_any_failure_the_machines() -> None:
    failure = failure_in(entry(caused_by(self_test="disk: OSError: [Errno 28]")))

    assert isinstance(failure, WorkerUnavailable)
    assert "disk: OSError: [Errno 28]" in failure.message
    assert "TypeError: the sampler failed" in failure.message


def test_other_exception_is_named_with_its_node() -> None:
    failure = failure_in(entry(node_error("ValueError", " the reason\n")))

    assert isinstance(failure, ExecutionFailed)
    assert failure.message == "node 7 (KSampler) failed: ValueError: the reason"
    assert failure.node_id == "7"


def test_long_exception_is_cut() -> None:
    failure = failure_in(entry(node_error("ValueError", "x" * 10_000)))

    assert failure is not None
    assert failure.message.endswith("x...")
    assert len(failure.message) < MAX_EXCEPTION_MESSAGE + 100


def test_interruption_is_not_a_failure_of_the_node() -> None:
    interruption = "execution_interrupted", {"node_id": "7", "node_type": "KSampler"}

    failure = failure_in(entry(("execution_start", {}), interruption))

    assert isinstance(failure, Cancelled)
    assert failure.node_id == "7"


def test_error_without_a_message_is_a_failure() -> None:
    assert isinstance(failure_in(entry()), ExecutionFailed)


def test_wrong_url_of_a_model_is_a_wrong_request() -> None:
    unknown = {"types": ["inside_gate.ModelNotFound", "Exception"], "message": "HTTP 404"}
    name, data = node_error("ModelNotFound", "HTTP 404")

    failure = failure_in(entry((name, data | {"causes": [unknown | {"errno": None}]})))

    assert isinstance(failure, InvalidRequest)
    assert failure.message == "node 7 (KSampler): HTTP 404"


def test_model_that_did_not_arrive_is_no_fault_of_the_machine() -> None:
    reason = "vae/a.safetensors: https://host/a: No space left on device"
    missing = {"types": ["inside_gate.ModelUnavailable", "Exception"], "message": reason}
    wrapped = {"types": ["RuntimeError", "Exception"], "message": "the loader failed"}
    name, data = node_error("RuntimeError", "the loader failed")
    causes = [wrapped | {"errno": None}, missing | {"errno": None}]

    failure = failure_in(entry((name, data | {"causes": causes})))

    assert isinstance(failure, ModelUnavailable)
    assert failure.retryable
    assert failure.node_id == "7"
    assert failure.message == f"node 7 (KSampler): {reason}"
