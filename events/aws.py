"""AWS clients for the sources that need one, and the text of an AWS error.

The clients use the ordinary credential chain. boto3 is imported with the first client: most events
need none, and the import takes 0.3 s.
"""

from typing import Any


def client(service: str, region: str | None = None) -> Any:
    """A new client of boto3. The caller closes it; sources need one a minute at most.

    `region` defaults to the environment's. boto3 raises its own errors for a missing one.
    """
    import boto3  # noqa: PLC0415 - see the module's first lines
    from botocore.config import Config  # noqa: PLC0415

    # A service that does not answer must not use up the invocation's time.
    config = Config(
        connect_timeout=2,
        read_timeout=5,
        retries={"mode": "standard", "total_max_attempts": 3},
    )
    return boto3.session.Session().client(service, region, config=config)


def error_name(error: Exception) -> str:
    """The error code in AWS's response, else the name of the exception's class.

    It is safe to log. The text of such an exception can hold an URL, a token or what was sent.
    https://docs.aws.amazon.com/boto3/latest/guide/error-handling.html
    """
    response = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return str(code or type(error).__name__)
