"""The logs of the event sources: children of the handler's logger, so their lines have its form.

What a line of the log contains is decided in handler/log.py.
"""

import logging

SERVICE = "lambda-comfyui"


def log_of(source: str) -> logging.Logger:
    """The log of a source, by the source's name."""
    return logging.getLogger(f"{SERVICE}.{source}")
