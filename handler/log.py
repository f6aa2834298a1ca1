"""The structured log of a handler: one JSON object a line, with the ids of the running job.

A line with the key `event` is an event of the job (job_events.py); `lambda-comfyui invoke` reads
these lines to show progress.
"""

from aws_lambda_powertools import Logger

from events.source_log import SERVICE
from handler.job_events import JobEvent

logger = Logger(service=SERVICE, location=None)
_WRITE_AT = {"INFO": logger.info, "WARNING": logger.warning, "ERROR": logger.error}


def write_event(event: JobEvent) -> None:
    """Write one event of the running job as a line of the log."""
    extra = {"event": event.name, **event.log_fields()}
    _WRITE_AT[event.level](event.log_message(), extra=extra)
