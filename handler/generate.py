"""The way of one event: validate, prepare, wake the worker, run, store, notify.

Every way ends in the documented response; nothing is raised at the caller.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from events.contract import caller_of, parse_request
from events.errors import AlreadyRunning, InternalError, JobError, OutOfMemory
from events.job import Job
from handler import webhook
from handler.artifacts import Collector
from handler.clock import Deadline
from handler.emit import emit
from handler.execution import Execution, failure_in
from handler.job_events import JobCompleted, JobFailed, JobPostponed, JobReceived
from handler.jobs import Claim, Jobs
from handler.log import logger
from handler.model_folders import standins_used
from handler.response import Outcome
from handler.runner import Runner
from handler.settings import Settings
from handler.storage import Storage, Uploads, target_of
from handler.worker_client import ReadyWorker
from handler.workflow import fill_random_ints, force_rerun, model_names


class Generator:
    """What a handler process keeps between events: its connections to worker, ComfyUI and S3."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._jobs = Jobs(settings)
        self._runner = Runner(settings)
        self._storage = Storage(settings.s3_url_expires_s)

    def generate(self, event: Any, deadline: Deadline, source: str) -> dict[str, Any]:
        """Run the job that a request event describes; the documented response, always."""
        outcome = Outcome(caller_of(event))
        logger.append_keys(request_id=outcome.caller.request_id)
        try:
            return self._generate(event, outcome, deadline, source)
        finally:
            # Last of all: a worker that drains ends with its last job, and takes us along.
            self._runner.done()
            logger.remove_keys(["request_id", "prompt_id"])

    def close(self) -> None:
        """Give up the connections; a worker that was started for this process alone stops."""
        self._runner.close()
        self._jobs.close()

    def _generate(
        self, event: Any, outcome: Outcome, deadline: Deadline, source: str
    ) -> dict[str, Any]:
        claim = Claim()
        try:
            emit(JobReceived(request_id=outcome.caller.request_id, source=source))
            with outcome.timings.stage("preprocess_ms"):
                job = parse_request(event, outcome.caller)
                claim = self._jobs.claim(job)
            if claim.stored is None:
                self._run(job, claim, outcome, deadline)
        except JobError as error:
            outcome.error = error
        except Exception as error:
            logger.exception("unexpected error")
            outcome.error = InternalError(f"unexpected {type(error).__name__}; the log says more")
        try:
            return claim.stored or self._end(outcome, claim, deadline)
        finally:
            claim.release()

    def _end(self, outcome: Outcome, claim: Claim, deadline: Deadline) -> dict[str, Any]:
        response = outcome.response()
        # The invocation that runs the job tells the webhook how it ended.
        if not isinstance(outcome.error, AlreadyRunning):
            budget_s = deadline.answer_left_s()
            webhook.deliver(response, outcome.caller, self._settings, budget_s=budget_s)
        # After the webhook: whoever is killed before it was called leaves the job to a repeat.
        claim.end(response)
        # Last of all: a job whose end was logged does not run again.
        _emit_end(response)
        return response

    def _run(self, job: Job, claim: Claim, outcome: Outcome, deadline: Deadline) -> None:
        with outcome.timings.stage("preprocess_ms"):
            outcome.return_base64 = job.return_base64
            workflow = fill_random_ints(job.workflow)
            self._warn_of_standins(workflow, outcome)
            is_ready = self._runner.begin(model_names(workflow), deadline)
        with self._uploads(job, claim, outcome, deadline) as uploads:
            worker = self._runner.wait_ready(is_ready, outcome.timings, deadline)
            if uploads:
                uploads.check()
            collector = Collector(job.id, worker.folders, include_temp=job.return_temp)
            outcome.collect_with(collector, uploads)
            self._execute(workflow, worker, outcome, deadline)
            if lost := outcome.lost_from_cache():
                # Somebody cleaned the files of an earlier run that ComfyUI's cache still names.
                self._execute(force_rerun(workflow, lost), worker, outcome, deadline)

    @contextmanager
    def _uploads(
        self, job: Job, claim: Claim, outcome: Outcome, deadline: Deadline
    ) -> Iterator[Uploads | None]:
        target = target_of(job.s3, self._settings)
        if target is None:
            yield None
            return
        with self._storage.uploads(
            target, is_callers=job.s3.is_given, attempt=claim.attempt
        ) as uploads:
            try:
                yield uploads
            finally:
                with outcome.timings.stage("upload_ms"):
                    outcome.wait_for_uploads(deadline.answer_left_s())
            if outcome.error is None:
                artifacts = [artifact for artifact, _ in outcome.artifacts]
                uploads.remove_leftovers(
                    artifacts,
                    max_age_s=self._settings.jobs_expire_s,
                    timeout_s=deadline.answer_left_s(),
                )

    def _execute(
        self, workflow: dict[str, Any], worker: ReadyWorker, outcome: Outcome, deadline: Deadline
    ) -> None:
        execution = Execution(str(uuid.uuid4()), workflow, outcome.collect)
        outcome.execution, outcome.entry = execution, None
        logger.append_keys(prompt_id=execution.prompt_id)
        entry = self._runner.run(workflow, worker, execution, outcome.timings, deadline)
        outcome.entry = entry
        with outcome.timings.stage("postprocess_ms"):
            # The messages may have missed an output; the history never does.
            for node_id, output in entry["outputs"].items():
                meta = entry.get("meta", {}).get(node_id) or {}
                outcome.collect(str(meta.get("display_node") or node_id), output)
        if (failure := failure_in(entry)) is not None:
            if isinstance(failure, OutOfMemory):
                # A ComfyUI that died of it has nothing left to free.
                with suppress(OSError):
                    self._runner.free(worker)
            raise failure
        outcome.warn_of_nothing()

    def _warn_of_standins(self, workflow: dict[str, Any], outcome: Outcome) -> None:
        if used := standins_used(model_names(workflow), self._settings):
            names = ", ".join(used)
            text = f"stand-in weights (random numbers) were used, the result is noise: {names}"
            outcome.warnings.append(text)
            logger.warning(text)


def _emit_end(response: dict[str, Any]) -> None:
    error, timings = response.get("error"), response["timings"]
    if error is None:
        emit(JobCompleted(timings=timings))
    elif error["type"] == AlreadyRunning.__name__:
        # Not a failure: the job runs elsewhere.
        emit(JobPostponed(message=error["message"]))
    else:
        emit(JobFailed(error=error, timings=timings))
