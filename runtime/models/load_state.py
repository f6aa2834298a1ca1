"""What a loader of ComfyUI is told about its file (runtime/worker/gate.py)."""

from dataclasses import dataclass
from pathlib import Path

from runtime.models.errors import AccessDeniedError, SourceMissingError
from runtime.models.header import is_copied_placeholder
from runtime.models.known_files import KnownFiles
from runtime.models.parts import is_complete, is_placeholder
from runtime.models.schedule import Schedule


@dataclass(frozen=True, slots=True)
class LoadState:
    """How far the file is that a loader asks for. `failure` says why it will not come.

    `is_request_wrong`: because the request names a URL without such a file.
    """

    is_complete: bool = False
    failure: str = ""
    is_request_wrong: bool = False
    done_bytes: int = 0
    total_bytes: int = 0


def load_state(target: Path, known: KnownFiles, schedule: Schedule) -> LoadState:
    """The state of a file now."""
    file = known.files.get(target)
    if file is None:
        return _state_of_other(target)
    if is_complete(file, target):
        return LoadState(is_complete=True)
    if error := schedule.error(target):
        is_wrong_url = isinstance(error, (SourceMissingError, AccessDeniedError))
        return LoadState(
            failure=str(error), is_request_wrong=is_wrong_url and known.is_of_caller(target)
        )
    done_bytes, total_bytes = schedule.progress(target)
    return LoadState(done_bytes=done_bytes, total_bytes=total_bytes)


def _state_of_other(target: Path) -> LoadState:
    """That of a file that the worker does not bring."""
    if not is_placeholder(target) and not is_copied_placeholder(target):
        return LoadState(is_complete=True)
    return LoadState(
        failure=f"{target.name} is a placeholder or the copy of one, and no manifest of this worker"
        f" names it: list it in one of MODEL_MANIFESTS, or delete {target}"
    )
