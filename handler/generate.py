"""One job, from the request event to the documented response:

    validate → claim → check → wake → run → store → notify

Every failure becomes the response's `error`; nothing is raised at the caller. Which event holds
which request is decided in events/, what the response looks like in response.py, what a failure of
ComfyUI means in runner.py, and what a failure of a node means in node_failure.py.
"""

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from events.contract import caller_of, parse_request
from events.errors import (
    AlreadyRunning,
    Cancelled,
    IdConflict,
    InternalError,
    JobError,
    KilledTheWorker,
    OutOfMemory,
    WorkerUnavailable,
    class_of,
)
from events.job import Caller, Job
from handler.artifacts import Collector, folder_name
from handler.callers_urls import refuse_forbidden
from handler.cancellation import Cancellation, no_cancellation
from handler.clock import Deadline
from handler.connections import Connections
from handler.emit import emit, subscribed
from handler.execution import Execution
from handler.input_files import LoadableFiles, mark_as_used
from handler.inputs.job_inputs import JobInputs
from handler.job_cost import cost_of
from handler.job_events import (
    JobCancelled,
    JobCompleted,
    JobFailed,
    JobPostponed,
    JobReceived,
)
from handler.job_folder import mark_of
from handler.job_webhook import JobWebhook
from handler.jobs import Claim
from handler.jobs.record import WebhookState
from handler.leftovers import Attempt
from handler.load_order import models_in_order
from handler.log import logger
from handler.machine_faults import cause_of, is_machine_fault
from handler.model_folders import standins_used
from handler.model_urls import take_model_urls
from handler.node_failure import failure_in
from handler.outputs import JobOutputs
from handler.recorded_progress import RecordedProgress
from handler.response import JobResult, build_response
from handler.runner import JobDied, Runner, Wake
from handler.storage import Uploads, target_of
from handler.webhook import new_event_id
from handler.workflow import fill_random_ints, force_rerun, model_names
from handler.workflow_templates import with_workflow


def generate(
    event: Any,
    connections: Connections,
    deadline: Deadline,
    source: str,
    comes_again: Callable[[], bool],
) -> dict[str, Any]:
    """Run the job that a request event describes; returns the documented response.

    `source` is the name of the event source, for the log. `comes_again` says whether the source
    delivers the request again after a retryable failure. Never raises for what the event holds.
    """
    caller = caller_of(event)
    logger.append_keys(request_id=caller.request_id)
    run = JobRun(caller, source, connections, deadline, comes_again)
    try:
        emit(JobReceived(request_id=caller.request_id, source=source))
        return run.answer(event)
    finally:
        # Last of all: a worker that drains ends with its last job, and ends this process, too.
        connections.end_job(has_completed=run.has_completed)
        logger.remove_keys(["request_id", "prompt_id"])


class JobRun:
    """The run of one job. `answer` is called once."""

    def __init__(
        self,
        caller: Caller,
        source: str,
        connections: Connections,
        deadline: Deadline,
        comes_again: Callable[[], bool],
    ) -> None:
        self._source = source
        self._connections, self._deadline = connections, deadline
        self._comes_again = comes_again
        self._settings = connections.settings
        self._result = JobResult(caller)
        self._timings = self._result.timings
        self._cancellation = no_cancellation()

    @property
    def has_completed(self) -> bool:
        """Whether ComfyUI has run the job to its end without an error."""
        return self._result.execution is not None and self._result.error is None

    def answer(self, event: Any) -> dict[str, Any]:
        """The response: of this run, or the stored one of an earlier run of the same request."""
        claim = Claim()
        try:
            with self._timings.stage("preprocess_ms"):
                job = parse_request(event, self._result.caller)
                claim = self._connections.jobs.claim(job, self._source)
            if claim.stored is not None:
                return self._repeat(claim, claim.stored)
            self._cancellation = Cancellation(claim.is_cancel_requested)
            with (
                subscribed(RecordedProgress(claim, self._items).note),
                self._webhook().progress_calls(self._items) as calls,
                subscribed(calls.note),
            ):
                self._run(job, claim.attempt)
        except JobError as error:
            self._result.error = error
        except JobDied as death:
            self._result.error = self._failure_of_death(death, claim)
        except Exception as error:
            logger.exception("unexpected error")
            self._result.error = self._failure_of(error)
        self._end_cancelled()
        try:
            return self._end(claim)
        finally:
            claim.release()

    def _items(self) -> list[dict[str, Any]]:
        """The items of `output` that are there by now."""
        outputs = self._result.outputs
        return (
            [item for item in outputs.as_dicts() if "upload_error" not in item] if outputs else []
        )

    def _run(self, job: Job, attempt: Attempt | None) -> None:
        self._cancellation.check("before it began")
        with self._timings.stage("preprocess_ms"):
            self._result.return_base64 = job.return_base64
            job = with_workflow(job, self._settings.workflow_templates)
            refuse_forbidden(job, self._settings)
            workflow, model_urls = take_model_urls(job.workflow, self._settings)
            workflow = fill_random_ints(workflow)
            self._warn_of_standins(workflow)
            inputs = JobInputs(
                job,
                self._settings,
                self._deadline,
                lambda: self._cancellation.check("while its input files were fetched"),
            )
            wake = Wake(
                self._connections.worker,
                models_in_order(workflow),
                self._timings,
                self._deadline,
                model_urls,
            )
        with inputs, self._uploads(job, attempt) as uploads:
            worker = wake.wait(self._cancellation)
            if uploads:
                uploads.check()
            collector = Collector(
                job.id,
                worker.folders,
                include_temp=job.return_temp,
                made_since=0.0 if self._settings.load_any_file else time.time(),
            )
            outputs = self._result.outputs = JobOutputs(collector, uploads)
            runner = Runner(
                self._connections, worker, self._timings, self._deadline, self._cancellation
            )
            loadable = LoadableFiles(
                worker.folders["input"], worker.folders["output"] / folder_name(job.id)
            )
            with self._timings.stage("preprocess_ms"):
                workflow = inputs.put_into(workflow, runner.node_info)
            if not self._settings.load_any_file:
                runner.check_files(workflow, loadable)
            mark_as_used(workflow, loadable)
            execution = self._execute(workflow, runner, outputs)
            if lost := outputs.nodes_with_lost_files(execution.nodes_executed):
                # The files of an earlier run that ComfyUI's cache still names were deleted.
                outputs.forget(lost)
                execution = self._execute(force_rerun(workflow, lost), runner, outputs)
            if failure := outputs.failure():
                if isinstance(failure, WorkerUnavailable):
                    self._report_fault(failure)
                raise failure
            execution.finish()
            self._result.warnings += outputs.warnings()

    @contextmanager
    def _uploads(self, job: Job, attempt: Attempt | None) -> Iterator[Uploads | None]:
        """The uploads of the job, which are waited for at the end; None without a bucket."""
        target = target_of(job.s3, self._settings)
        if target is None:
            yield None
            return
        with self._connections.storage.uploads(
            target, is_callers=job.s3.is_given, attempt=attempt, mark=mark_of(job, attempt)
        ) as uploads:
            try:
                yield uploads
            finally:
                self._wait_for_uploads()
            if self._result.error is None and self._result.outputs:
                uploads.remove_leftovers(
                    self._result.outputs.artifacts,
                    max_age_s=self._settings.jobs_expire_s,
                    timeout_s=self._deadline.answer_left_s(),
                )

    def _wait_for_uploads(self) -> None:
        outputs, result = self._result.outputs, self._result
        with self._timings.stage("upload_ms"):
            if outputs:
                outputs.wait(self._deadline.answer_left_s(), self._cancellation.is_requested)
                if self._cancellation.is_requested() and not outputs.are_stored:
                    result.error = Cancelled(
                        "the job was cancelled by a request, while its files were uploaded"
                    )
                result.error = result.error or outputs.upload_failure()

    def _execute(self, workflow: dict[str, Any], runner: Runner, outputs: JobOutputs) -> Execution:
        """Run the workflow as one prompt. Raises the JobError that its history entry amounts to."""
        durations = self._connections.durations
        durations.refresh()
        earlier = self._result.execution
        execution = Execution(
            str(uuid.uuid4()),
            workflow,
            outputs.add,
            durations,
            percentage=earlier.percentage if earlier else 0.0,
        )
        self._result.execution = execution
        logger.append_keys(prompt_id=execution.prompt_id)
        entry = runner.run(execution)
        with self._timings.stage("postprocess_ms"):
            outputs.forget_missing()
            execution.end(entry)
        if (failure := failure_in(entry)) is not None:
            if isinstance(failure, OutOfMemory):
                # A ComfyUI that died of it has no memory left to free.
                with suppress(OSError):
                    runner.free_memory()
            if isinstance(failure, WorkerUnavailable):
                self._report_fault(failure)
            raise failure
        return execution

    def _end_cancelled(self) -> None:
        """A job whose end was requested does not come again after a failure."""
        failure = self._result.error
        if failure and failure.retryable and self._cancellation.is_requested():
            text = f"the job was cancelled by a request, after a failure: {failure.message}"
            self._result.error = Cancelled(text)

    def _failure_of_death(self, death: JobDied, claim: Claim) -> JobError:
        """The job is failed for good after its second death, if the machine is sound then."""
        if claim.note_death():
            try:
                # The ComfyUI that follows serves only if it has passed the self-test.
                Wake(self._connections.worker, (), self._timings, self._deadline).wait(
                    self._cancellation
                )
            except JobError:
                pass
            else:
                return KilledTheWorker(f"ComfyUI died twice while this job ran. {death}")
        return WorkerUnavailable(f"ComfyUI died while the job ran. {death}")

    def _failure_of(self, error: Exception) -> JobError:
        """What an unexpected exception is: a fault of the machine, or a defect of this project."""
        if is_machine_fault(cause_of(error)):
            failure = WorkerUnavailable(f"the handler met a fault of the machine: {error}")
            self._report_fault(failure)
            return failure
        text = f"unexpected {type(error).__name__}; the log has the traceback"
        return InternalError(text)

    def _report_fault(self, failure: WorkerUnavailable) -> None:
        request_id = self._result.caller.request_id
        self._connections.worker.report_fault(request_id, failure.message)

    def _end(self, claim: Claim) -> dict[str, Any]:
        response = build_response(self._result)
        is_end, state = self._is_end(), WebhookState.NONE
        webhook = self._webhook()
        if is_end and webhook.wants(response):
            event_id = new_event_id()
            # A handler that is killed during the call leaves only the call to a repeat.
            claim.begin_delivery(response, event_id)
            state = webhook.call(response, event_id)
        claim.end(response, webhook_state=state, comes_again=not is_end)
        if self._result.outputs:
            self._result.outputs.record_delivery(self._settings.worker_dir)
        # After the claim: a job whose end was logged does not run again.
        _emit_end(response, cost_of(response["timings"], self._settings.price_per_hour))
        return response

    def _repeat(self, claim: Claim, stored: dict[str, Any]) -> dict[str, Any]:
        """The stored response; its webhook may be still to be called."""
        if claim.webhook_event:
            webhook, state = self._webhook(), WebhookState.NONE
            if webhook.wants(stored):
                state = webhook.call(stored, claim.webhook_event)
            claim.end(stored, webhook_state=state)
        return stored

    def _webhook(self) -> JobWebhook:
        return JobWebhook(self._result.caller, self._settings, self._deadline)

    def _is_end(self) -> bool:
        """Whether the job of this id has ended: it runs nowhere else, and does not come again.

        The webhook of an id is called for the job that has the id.
        """
        error = self._result.error
        if isinstance(error, AlreadyRunning | IdConflict):
            return False
        return error is None or not error.retryable or not self._comes_again()

    def _warn_of_standins(self, workflow: dict[str, Any]) -> None:
        if names := standins_used(model_names(workflow), self._settings):
            text = (
                "stand-in weights (random numbers) were used, the result is noise:"
                f" {', '.join(names)}"
            )
            self._result.warnings.append(text)
            logger.warning(text)


def _emit_end(response: dict[str, Any], cost: float | None) -> None:
    error, timings = response.get("error"), response["timings"]
    if error is None:
        emit(JobCompleted(timings=timings, cost=cost))
    elif class_of(error) is AlreadyRunning:
        # Not a failure: the job runs elsewhere.
        emit(JobPostponed(message=error["message"]))
    elif class_of(error) is Cancelled:
        emit(JobCancelled(message=error["message"], timings=timings, cost=cost))
    else:
        emit(JobFailed(error=error, timings=timings, cost=cost))
