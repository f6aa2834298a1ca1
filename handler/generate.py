"""The way of one event: validate, prepare, wake the worker, run, store, notify.

Every way ends in the documented response; nothing is raised at the caller.
"""

import time
import uuid
from collections.abc import Sequence
from typing import Any

from events.contract import caller_of, parse_request
from events.errors import JobError
from events.job import Job
from handler import webhook
from handler.artifacts import Collector
from handler.clock import Deadline
from handler.comfyui import ComfyUI, ComfyUIGone, HistoryEntry
from handler.errors import DeadlineExceeded, InternalError, OutOfMemory, WorkerUnavailable
from handler.execution import Execution, failure_in
from handler.log import emit, logger
from handler.outcome import Outcome
from handler.settings import Settings
from handler.storage import Storage, target_of
from handler.worker import ReadyWorker, Worker
from handler.workflow import check_queueable, fill_random_ints, model_names, standins_used

_INTERRUPT_WAIT_S = 5.0
_INTERRUPT_POLL_S = 0.05


class Generator:
    """What a handler process keeps between events: its connections to worker, ComfyUI and S3."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._worker = Worker(settings)
        self._storage = Storage(settings.s3_url_expires_s)
        self._client: tuple[ReadyWorker, ComfyUI] | None = None

    def generate(self, event: Any, deadline: Deadline, source: str) -> dict[str, Any]:
        """Run the job that a request event describes; the documented response, always."""
        outcome = Outcome(caller_of(event))
        logger.append_keys(request_id=outcome.caller.request_id)
        try:
            emit("job.received", "job received", source=source)
            self._run(event, outcome, deadline)
        except JobError as error:
            outcome.error = error
        except Exception as error:
            logger.exception("unexpected error")
            outcome.error = InternalError(f"unexpected {type(error).__name__}; the log says more")
        finally:
            self._worker.done()
        response = outcome.response()
        _log_end(response)
        try:
            webhook.deliver(
                response, outcome.caller, self._settings, budget_s=deadline.answer_left_s()
            )
        except Exception as error:
            # Whatever it was, the job is done; the text of the error may hold the URL's token.
            logger.error("the webhook was not delivered", extra={"reason": type(error).__name__})
        logger.remove_keys(["request_id", "prompt_id"])
        return response

    def close(self) -> None:
        """Give up the connections; a worker that was started for this process alone stops."""
        if self._client:
            self._client[1].close()
        self._worker.close()

    def _run(self, event: Any, outcome: Outcome, deadline: Deadline) -> None:
        with outcome.timings.stage("preprocess_ms"):
            job = parse_request(event, outcome.caller)
            check_queueable(job.workflow)
            outcome.return_base64 = job.return_base64
            models = model_names(job.workflow)
            is_ready = self._begin_wake(models)
            workflow = fill_random_ints(job.workflow)
            self._warn_of_standins(workflow, outcome)
        worker = self._wait_ready(is_ready, outcome, deadline)
        try:
            self._execute(job, workflow, worker, outcome, deadline)
        finally:
            with outcome.timings.stage("upload_ms"):
                outcome.wait_for_uploads(deadline.answer_left_s())

    def _begin_wake(self, models: Sequence[str]) -> bool:
        try:
            return self._worker.begin_wake(models)
        except OSError as error:
            raise WorkerUnavailable(f"the worker does not answer: {error.strerror}") from error

    def _wait_ready(self, is_ready: bool, outcome: Outcome, deadline: Deadline) -> ReadyWorker:
        if not is_ready:
            emit("worker.starting", "cold: waiting for ComfyUI")
        began = time.monotonic()
        try:
            worker = self._worker.wait_ready(deadline.work_left_s())
        except TimeoutError:
            raise DeadlineExceeded(
                "the invocation ran out of time while ComfyUI was starting; the job was not begun",
                began=False,
            ) from None
        except OSError as error:
            raise WorkerUnavailable("the worker died while ComfyUI was starting") from error
        if not is_ready:
            waited_ms = round((time.monotonic() - began) * 1000, 1)
            outcome.timings.add("cold_start_ms", waited_ms)
            emit("worker.ready", "ComfyUI is ready", cold_start_ms=waited_ms)
        return worker

    def _execute(
        self,
        job: Job,
        workflow: dict[str, Any],
        worker: ReadyWorker,
        outcome: Outcome,
        deadline: Deadline,
    ) -> None:
        collector = Collector(job.id, worker.folders, include_temp=job.return_temp)
        target = target_of(job.s3, self._settings)

        def store(node_id: str, output: dict[str, Any]) -> None:
            for artifact in collector.collect(node_id, output):
                upload = self._storage.upload(target, artifact) if target else None
                outcome.artifacts.append((artifact, upload))

        outcome.execution = execution = Execution(str(uuid.uuid4()), workflow, store)
        logger.append_keys(prompt_id=execution.prompt_id)
        if target:
            self._storage.prepare(target)
        began = time.monotonic()
        try:
            client = self._submit(workflow, worker, outcome, execution, deadline)
            outcome.entry = self._follow(client, worker, execution, deadline)
        finally:
            ran_ms = (time.monotonic() - began) * 1000
            outcome.timings.add("queue_ms", execution.queue_ms)
            outcome.timings.add("generation_ms", ran_ms - execution.queue_ms)
        with outcome.timings.stage("postprocess_ms"):
            # The messages may have missed an output; the history never does.
            for node_id, output in outcome.entry["outputs"].items():
                meta = outcome.entry.get("meta", {}).get(node_id) or {}
                store(str(meta.get("display_node") or node_id), output)
            if collector.left_out_temp and not outcome.artifacts:
                outcome.warnings.append(
                    "the workflow made only previews, which are left out: use a Save node,"
                    " or set input.return_temp_outputs"
                )
        if (failure := failure_in(outcome.entry)) is not None:
            if isinstance(failure, OutOfMemory):
                client.free()
            raise failure

    def _submit(
        self,
        workflow: dict[str, Any],
        worker: ReadyWorker,
        outcome: Outcome,
        execution: Execution,
        deadline: Deadline,
    ) -> ComfyUI:
        for attempt in (1, 2):
            client = self._client_of(worker)
            try:
                client.submit(workflow, execution.prompt_id)
                break
            except ComfyUIGone as error:
                # It died since the last event, and the worker is about to replace it.
                words = self._worker.last_words(worker)
                if attempt == 2:
                    raise WorkerUnavailable(f"ComfyUI did not take the job. {words}") from error
                worker = self._wait_ready(self._begin_wake(()), outcome, deadline)
        emit("job.queued", "job queued", prompt_id=execution.prompt_id, nodes=len(workflow))
        return client

    def _follow(
        self, client: ComfyUI, worker: ReadyWorker, execution: Execution, deadline: Deadline
    ) -> HistoryEntry:
        try:
            return client.follow(
                execution.prompt_id, execution.observe, deadline=deadline.work_until
            )
        except TimeoutError:
            self._make_way(client, execution.prompt_id)
            raise _deadline_exceeded(execution) from None
        except ComfyUIGone as error:
            words = self._worker.last_words(worker) or "It was restarted."
            raise WorkerUnavailable(f"ComfyUI died while the job ran. {words}") from error

    def _make_way(self, client: ComfyUI, prompt_id: str) -> None:
        """Interrupt the job; a ComfyUI that does not let go of it is replaced."""
        try:
            client.interrupt(prompt_id)
            give_up = time.monotonic() + _INTERRUPT_WAIT_S
            while not client.is_over(prompt_id):
                if time.monotonic() > give_up:
                    self._worker.restart()
                    return
                time.sleep(_INTERRUPT_POLL_S)
        except OSError:
            self._worker.restart()

    def _client_of(self, worker: ReadyWorker) -> ComfyUI:
        if self._client is None or self._client[0] != worker:
            if self._client:
                self._client[1].close()
            self._client = (worker, ComfyUI(worker.base_url))
        return self._client[1]

    def _warn_of_standins(self, workflow: dict[str, Any], outcome: Outcome) -> None:
        models = self._settings.comfyui_code / "models"
        if used := standins_used(workflow, self._settings.standins, models):
            names = ", ".join(used)
            text = f"stand-in weights (random numbers) were used, the result is noise: {names}"
            outcome.warnings.append(text)
            logger.warning(text)


def _deadline_exceeded(execution: Execution) -> DeadlineExceeded:
    if not execution.began:
        return DeadlineExceeded(
            "the invocation ran out of time while the job waited in ComfyUI's queue", began=False
        )
    at = execution.nodes_executed[-1] if execution.nodes_executed else "?"
    return DeadlineExceeded(
        f"the invocation ran out of time at node {at}; raise the function's timeout,"
        " or make the workflow smaller",
        began=True,
    )


def _log_end(response: dict[str, Any]) -> None:
    error = response.get("error")
    if error:
        logger.error(
            response["message"] if response["status"] != "completed" else error["message"],
            extra={"event": "job.failed", "error": error, "timings": response["timings"]},
        )
    else:
        emit("job.completed", response["message"], timings=response["timings"])
