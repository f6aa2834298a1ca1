"""What is added to the executor inside ComfyUI's process: the self-test, and facts about failures.

runtime/worker/inside_comfyui.py loads this file when ComfyUI starts its executor, the thread that
runs the queue. ComfyUI's Python runs it, so it imports nothing of this project. It decides nothing:
what the causes of a failure mean is decided in handler/machine_faults.py, what becomes of a worker
whose self-test fails in runtime/worker/soundness.py.

docs/decisions/0009-sound-worker.md says why the test runs here and not as a prompt.
"""

import os
from pathlib import Path
from typing import Any

_TEST_FILE_BYTES = 1 << 18
_TEST_MEMORY_BYTES = 16 << 20
_TEST_MATRIX = 64
_MAX_CAUSES = 10
_MAX_MESSAGE = 2000


def extend(executor: Any) -> None:
    """Extend ComfyUI's class `PromptExecutor` (its execution.py).

    Lines on stdout, which runtime/worker/comfyui_process.py reads, name each prompt that begins
    and each that has ended.

    A failed run is examined before the next one begins. The message `execution_error` in its
    history gets two more keys: `causes`, the exception and those that it was raised from, each
    {types, message, errno}, the outermost first; and `self_test`, the problem that the self-test
    has found, '' for none.
    """
    plain_execute, plain = executor.execute, executor.handle_execution_error

    def execute(self: Any, prompt: Any, prompt_id: str, *arguments: Any) -> None:
        # At once, and past ComfyUI's own log: the prompt may end this process.
        os.write(1, f"[{prompt_id} begins]\n".encode())
        try:
            plain_execute(self, prompt, prompt_id, *arguments)
        finally:
            os.write(1, f"[{prompt_id} has ended]\n".encode())

    def handle_execution_error(self: Any, *arguments: Any) -> None:
        plain(self, *arguments)
        name, data = self.status_messages[-1]
        if name == "execution_error":
            # A new dict: the server's thread may be sending the old one.
            facts = {"causes": causes_of(arguments[-1]), "self_test": find_problem()}
            self.status_messages[-1] = (name, data | facts)

    executor.execute = execute
    executor.handle_execution_error = handle_execution_error


def causes_of(error: BaseException | None) -> list[dict[str, Any]]:
    """The exception and those that it was raised from, as JSON.

    `types` are the names of the class and its base classes, as ComfyUI writes `exception_type`.
    """
    causes: list[dict[str, Any]] = []
    while error is not None and len(causes) < _MAX_CAUSES:
        types = [_full_name(each) for each in type(error).__mro__ if each is not object]
        errno = error.errno if isinstance(error, OSError) else None
        causes.append({"types": types, "message": _text_of(error), "errno": errno})
        hidden = error.__suppress_context__
        error = error.__cause__ or (None if hidden else error.__context__)
    return causes


def find_problem() -> str:
    """What is wrong with this machine, in words; '' when it is sound.

    Writes and reads a file in ComfyUI's output and temp folders, fills some memory, and multiplies
    two small matrices on ComfyUI's device. It takes milliseconds.
    """
    for what, test in (("disk", _test_disk), ("memory", _test_memory), ("device", _test_device)):
        try:
            test()
        except Exception as error:
            return f"{what}: {_full_name(type(error))}: {_text_of(error)}"
    return ""


def _test_disk() -> None:
    import folder_paths  # type: ignore[import-not-found]  # noqa: PLC0415

    for folder in (folder_paths.get_output_directory(), folder_paths.get_temp_directory()):
        path = Path(folder) / f".self-test-{os.getpid()}"
        content = os.urandom(_TEST_FILE_BYTES)
        try:
            # ComfyUI makes the temp folder after it has started its executor.
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                file.write(content)
                file.flush()
                # Some file systems report a full or broken disk only now.
                os.fsync(file.fileno())
            if path.read_bytes() != content:
                raise OSError(f"a file in {folder} does not have the content that was written")
        finally:
            path.unlink(missing_ok=True)


def _test_memory() -> None:
    # Not zeros, which the kernel would hand out without any memory.
    bytes([1]) * _TEST_MEMORY_BYTES


def _test_device() -> None:
    import comfy.model_management  # noqa: PLC0415
    import torch  # noqa: PLC0415

    try:
        ones = torch.ones(
            (_TEST_MATRIX, _TEST_MATRIX), device=comfy.model_management.get_torch_device()
        )
        # `item` waits for the device, and raises what an earlier kernel has left behind.
        total = (ones @ ones).sum().item()
    except torch.OutOfMemoryError:
        # The models of the failed job fill the memory: the device works.
        return
    if total != _TEST_MATRIX**3:
        raise RuntimeError(f"a product of matrices sums to {total}, expected {_TEST_MATRIX**3}")


def _full_name(cls: type) -> str:
    return (
        cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    )


def _text_of(error: BaseException) -> str:
    try:
        return str(error)[:_MAX_MESSAGE]
    except Exception:
        # A `__str__` of a custom node's exception.
        return ""
