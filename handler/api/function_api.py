"""The API of the function that runs jobs itself."""

from typing import Any

from events.event_context import Handle
from handler.api.authentication import read_token
from handler.api.job_board import JobBoard
from handler.api.lambda_front import FunctionDispatcher, LambdaFront
from handler.jobs.store import is_store_configured, open_store
from handler.settings import Settings


class FunctionApi:
    """Answers the HTTP events of the function. Making it raises what boto3 and SQLite raise."""

    def __init__(self, settings: Settings) -> None:
        store = open_store(settings) if is_store_configured(settings) else None
        accept = None
        if settings.jobs_queue_url:
            from handler.api.jobs_queue import JobsQueue  # noqa: PLC0415 - it imports boto3

            accept = JobsQueue(settings).send
        board = JobBoard(store, settings.jobs_expire_s)
        self._dispatcher = FunctionDispatcher(accept)
        self._front = LambdaFront(
            board,
            self._dispatcher,
            read_token(settings.api_token),
            templates_folder=settings.workflow_templates,
        )

    def answer(self, event: dict[str, Any], handle: Handle) -> dict[str, Any]:
        """The reply to an event; `handle` runs a job."""
        self._dispatcher.handle = handle
        return self._front.answer(event)
