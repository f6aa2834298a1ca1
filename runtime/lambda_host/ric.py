"""How AWS's runtime interface client is started, and what its end means for an invocation.

https://docs.aws.amazon.com/lambda/latest/dg/configuration-envvars.html lists the variables.
"""

import os
import signal
import sys
from collections.abc import Mapping

from handler.settings import PROJECT
from runtime.lambda_host.invocations import InvocationResult, failure

FUNCTION_NAME = "lambda-comfyui"
_REGION = "us-east-1"
_ACCOUNT = "012345678912"


def ric_command(handler: str) -> list[str]:
    """`handler` is MODULE.FUNCTION, as in a function's configuration."""
    return [sys.executable, "-m", "awslambdaric", handler]


def ric_environment(environ: Mapping[str, str], handler: str, api_address: str) -> dict[str, str]:
    """`environ` with Lambda's own variables on top; `api_address` is HOST:PORT."""
    environment = {
        "AWS_REGION": _REGION,
        "AWS_DEFAULT_REGION": environ.get("AWS_REGION", _REGION),
        **environ,
        "_HANDLER": handler,
        "AWS_LAMBDA_RUNTIME_API": api_address,
        "AWS_LAMBDA_FUNCTION_NAME": FUNCTION_NAME,
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(_memory_mib()),
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        # JSON is what Managed Instances always use: warnings of any library come as one line each.
        "AWS_LAMBDA_LOG_FORMAT": "JSON",
        "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{FUNCTION_NAME}",
        "AWS_LAMBDA_LOG_STREAM_NAME": "$LATEST",
        # Lower than 3.12, or unset, and the client sits in a C call where Python sees no SIGTERM.
        "AWS_EXECUTION_ENV": "AWS_Lambda_python3.12",
        "LAMBDA_TASK_ROOT": str(PROJECT),
        # The handler must be importable whatever PYTHONSAFEPATH and the caller's folder are.
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PROJECT), environ.get("PYTHONPATH")])),
    }
    # With it the client would fork workers, and none of them would be ours to watch.
    environment.pop("AWS_LAMBDA_MAX_CONCURRENCY", None)
    return environment


def function_arn(environ: Mapping[str, str]) -> str:
    region = environ.get("AWS_REGION", _REGION)
    return f"arn:aws:lambda:{region}:{_ACCOUNT}:function:{FUNCTION_NAME}"


def exit_error(status: int, request_id: str) -> InvocationResult:
    """What Lambda answers when the client ended by itself."""
    ended = f"exit status {status}"
    if status < 0:
        ended = f"signal: {signal.strsignal(-status) or -status}".lower()
    message = f"RequestId: {request_id} Error: Runtime exited with error: {ended}"
    return failure("Runtime.ExitError", message)


def timeout_error(timeout_s: float, request_id: str) -> InvocationResult:
    """What Lambda answers when the function's time is over."""
    message = f"RequestId: {request_id} Error: Task timed out after {timeout_s:.2f} seconds"
    return failure("Sandbox.Timedout", message)


def _memory_mib() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
