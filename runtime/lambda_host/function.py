"""The function that a host runs: its handler, its name, and the environment of its processes.

https://docs.aws.amazon.com/lambda/latest/dg/configuration-envvars.html lists the variables.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from handler.settings import PROJECT

HANDLER = "handler.app.lambda_handler"
FUNCTION_NAME = "lambda-comfyui"
FUNCTION_VERSION = "$LATEST"
ACCOUNT = "012345678912"
# The import of a handler takes a second or two. Lambda: 130 s, or the function's timeout.
INIT_TIMEOUT_S = 60.0
_REGION = "us-east-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """What runs in an environment.

    `handler` is MODULE.FUNCTION. `environ` is the environment of every process, without Lambda's
    own variables. `concurrency` is the number of runtime clients. `extensions` are the commands
    that are started before the clients and must register.
    """

    handler: str
    environ: Mapping[str, str]
    concurrency: int = 1
    extensions: Sequence[Sequence[str]] = ()
    init_timeout_s: float = INIT_TIMEOUT_S

    def with_variables(self, variables: Mapping[str, str]) -> "Function":
        """The same function with these variables in the environment of its processes."""
        return replace(self, environ={**self.environ, **variables})

    @property
    def name(self) -> str:
        return self.environ.get("AWS_LAMBDA_FUNCTION_NAME") or FUNCTION_NAME

    @property
    def arn(self) -> str:
        region = self.environ.get("AWS_REGION") or _REGION
        return f"arn:aws:lambda:{region}:{ACCOUNT}:function:{self.name}"

    def extension_environment(self, api_address: str) -> dict[str, str]:
        """`environ` with Lambda's variables for an extension; `api_address` is HOST:PORT."""
        environment = {
            "AWS_REGION": _REGION,
            "AWS_DEFAULT_REGION": self.environ.get("AWS_REGION", _REGION),
            **self.environ,
            "AWS_LAMBDA_RUNTIME_API": api_address,
            "AWS_LAMBDA_FUNCTION_NAME": self.name,
            "AWS_LAMBDA_FUNCTION_VERSION": FUNCTION_VERSION,
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(_memory_mib()),
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            # The project must be importable whatever PYTHONSAFEPATH and the caller's folder are.
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(PROJECT), self.environ.get("PYTHONPATH")])
            ),
        }
        # With it AWS's client would fork workers that the host does not know.
        environment.pop("AWS_LAMBDA_MAX_CONCURRENCY", None)
        return environment

    def client_environment(self, api_address: str) -> dict[str, str]:
        """`environ` with Lambda's variables for a runtime client; `api_address` is HOST:PORT."""
        return {
            **self.extension_environment(api_address),
            "_HANDLER": self.handler,
            # As on Managed Instances always: a warning of a library is one line of JSON.
            "AWS_LAMBDA_LOG_FORMAT": "JSON",
            "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{self.name}",
            "AWS_LAMBDA_LOG_STREAM_NAME": FUNCTION_VERSION,
            # Below 3.12 the client waits in a C call, where Python does not handle SIGTERM.
            "AWS_EXECUTION_ENV": "AWS_Lambda_python3.12",
            "LAMBDA_TASK_ROOT": str(PROJECT),
        }


def _memory_mib() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
