"""The structured log of a handler: one JSON object a line, with the ids of the running job.

Lines with the key `event` tell how a job moves; `python -m runtime invoke` shows them as progress.
"""

from typing import Any

from aws_lambda_powertools import Logger

logger = Logger(service="lambda-comfyui", location=None)


def emit(event: str, message: str, **details: Any) -> None:
    """Log one step of the running job; `details` must not be attributes of a LogRecord."""
    logger.info(message, extra={"event": event, **details})
