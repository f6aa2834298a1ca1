"""The function of the API alone, which needs no GPU: template.yaml's ApiFunction.

It puts jobs into the queue that the GPU function reads, and answers status, list and cancel from
the table of jobs.
"""

import os
from functools import cache
from typing import Any

from events import http
from handler.api.authentication import read_token
from handler.api.job_board import JobBoard
from handler.api.jobs_queue import JobsQueue
from handler.api.lambda_front import LambdaFront
from handler.api.sqs_dispatcher import SqsDispatcher
from handler.clock import Deadline
from handler.jobs.store import open_store
from handler.settings import Settings


def lambda_handler(event: Any, context: Any) -> dict[str, Any]:
    """Answer one HTTP call. Raises ValueError for any other event."""
    if not http.matches(event):
        raise ValueError("this function answers HTTP calls alone; invoke the GPU function instead")
    front, dispatcher = _front()
    dispatcher.time_left_s = Deadline(context, 0.0).answer_left_s
    return front.answer(event)


@cache
def _front() -> tuple[LambdaFront, SqsDispatcher]:
    settings = Settings.from_env(os.environ)
    if not (settings.jobs_table and settings.jobs_queue_url):
        raise ValueError("this function needs JOBS_TABLE and JOBS_QUEUE_URL")
    board = JobBoard(open_store(settings), settings.jobs_expire_s)
    dispatcher = SqsDispatcher(board, JobsQueue(settings).send)
    return LambdaFront(board, dispatcher, read_token(settings.api_token)), dispatcher
