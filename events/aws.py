"""Clients of AWS for the sources that need one; the ordinary credential chain and region.

boto3 is imported with the first of them: most events need none, and it costs more than the rest.
"""

from typing import Any


def client(service: str, region: str | None = None) -> Any:
    """A client of its own: sources need one a minute at most, and no thread shares it.

    `region` is the environment's unless it is given.
    """
    import boto3  # noqa: PLC0415 - see the module's first lines
    from botocore.config import Config  # noqa: PLC0415

    # A service that does not answer must not take what is left of the invocation's time.
    config = Config(
        connect_timeout=2,
        read_timeout=5,
        retries={"mode": "standard", "total_max_attempts": 3},
    )
    return boto3.session.Session().client(service, region, config=config)


def reason(error: Exception) -> str:
    """What AWS said, as a name: the text of these errors can hold what was sent."""
    response = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return str(code or type(error).__name__)
