"""The input files of one job: fetched while ComfyUI starts, and put into its workflow."""

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from events.errors import InputUnavailable, InvalidRequest, JobError
from events.job import Job
from handler.clock import Deadline
from handler.daemon_future import in_background
from handler.inputs.input_folder import InputFolder
from handler.inputs.references import Reference, loads_file, references_in
from handler.inputs.sources import BadReference, Limits, NotReachable, open_source
from handler.settings import Settings

# The declaration of a node class, {} for an unknown one: see GET /object_info of ComfyUI.
NodeInfo = Callable[[str], Mapping[str, Any]]
_WAIT_S = 0.1
_MAX_FILES = 100


class JobInputs:
    """The references of a job's workflow. Making it begins to fetch those of known loaders.

    `check` raises Cancelled if the job is to end. As a context, it ends the downloads at its end.
    """

    def __init__(
        self, job: Job, settings: Settings, deadline: Deadline, check: Callable[[], None]
    ) -> None:
        self._job, self._settings = job, settings
        self._deadline, self._check = deadline, check
        self._until = time.monotonic() + settings.input_timeout_s
        self._folder = InputFolder(
            settings.comfyui_data / "input", settings.worker_dir / "input-locks"
        )
        self._is_over = threading.Event()
        self._references = list(references_in(job.workflow))
        self._names: dict[tuple[str, str], Future[str]] = {}
        for reference in self._references[:_MAX_FILES]:
            if reference.is_known:
                self._begin(reference)

    def __enter__(self) -> "JobInputs":
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()

    def put_into(self, workflow: dict[str, Any], node_info: NodeInfo) -> dict[str, Any]:
        """The workflow with the names of the files. Raises InvalidRequest, InputUnavailable,
        Cancelled, and what `node_info` raises except ValueError.
        """
        wanted = [r for r in self._references if self._loads_file(r, node_info)]
        if len(wanted) > _MAX_FILES:
            raise InvalidRequest(
                f"input.workflow_json: {len(wanted)} inputs are to be fetched, expected"
                f" {_MAX_FILES} at most"
            )
        for reference in wanted:
            self._begin(reference)
        workflow = dict(workflow)
        for reference in wanted:
            name = self._wait(reference)
            node = workflow[reference.node_id]
            inputs = {**node["inputs"], reference.name: name}
            workflow[reference.node_id] = {**node, "inputs": inputs}
        return workflow

    def _begin(self, reference: Reference) -> None:
        key = (reference.value, reference.subfolder)
        if key not in self._names:
            self._names[key] = in_background(lambda: self._fetch(*key))

    def _fetch(self, value: str, subfolder: str) -> str:
        limits = Limits(self._settings.input_max_mb * 1024 * 1024, self._check_time)

        def store() -> str:
            with open_source(value, self._job.s3, self._settings, limits) as content:
                return self._folder.store(content, subfolder, limits.max_bytes, self._check_time)

        # Another caller's keys may lead to another object of the same name.
        s3 = self._job.s3
        identity = repr((value, subfolder, s3.endpoint_url, s3.access_key_id, s3.secret_access_key))
        return self._folder.fetch(identity, store, self._check_time)

    def _check_time(self) -> None:
        self._check()
        if self._is_over.is_set():
            raise NotReachable("its job has ended")
        left_s = self._deadline.work_left_s()
        if time.monotonic() > self._until or (left_s is not None and left_s <= 0):
            raise NotReachable("its download takes too long")

    def _wait(self, reference: Reference) -> str:
        future = self._names[reference.value, reference.subfolder]
        while True:
            try:
                return future.result(_WAIT_S)
            except TimeoutError:
                if not future.done():
                    # A server that sends nothing keeps the thread that reads from it.
                    self._check_waiting(reference)
                    continue
                raise _failure(reference, NotReachable("its server does not answer")) from None
            except (BadReference, NotReachable) as error:
                raise _failure(reference, error) from None
            except JobError:
                raise
            except OSError as error:
                text = f"it cannot be stored: {error.strerror or type(error).__name__}"
                raise _failure(reference, NotReachable(text)) from error

    def _check_waiting(self, reference: Reference) -> None:
        try:
            self._check_time()
        except NotReachable as error:
            raise _failure(reference, error) from None

    @staticmethod
    def _loads_file(reference: Reference, node_info: NodeInfo) -> bool:
        if reference.is_known:
            return True
        try:
            return loads_file(node_info(reference.class_type), reference.name)
        except ValueError:
            # The declaration of the class cannot be read.
            return False


def _failure(reference: Reference, error: Exception) -> JobError:
    kind = InputUnavailable if isinstance(error, NotReachable) else InvalidRequest
    return kind(
        f"{reference.path}: the file of node {reference.node_id} ({reference.class_type[:200]})"
        f" cannot be used: {error}",
        node_id=reference.node_id,
    )
