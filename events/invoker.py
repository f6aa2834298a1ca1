"""What our own Lambda host says about an invocation, as its client context.

https://docs.aws.amazon.com/lambda/latest/api/API_Invoke.html#API_Invoke_RequestSyntax
"""

import json
from typing import Any

_COMES_AGAIN = "comes-again"
# The request is delivered again if its failure is retryable.
COMES_AGAIN = json.dumps({"custom": {_COMES_AGAIN: True}})


def comes_again(lambda_context: Any) -> bool:
    """Whether the invoker sent COMES_AGAIN."""
    client_context = getattr(lambda_context, "client_context", None)
    custom = getattr(client_context, "custom", None)
    return isinstance(custom, dict) and custom.get(_COMES_AGAIN) is True
