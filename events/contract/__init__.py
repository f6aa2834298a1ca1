"""The contract: what a request and a response are.

request.py parses a request, schemas.py compares values with the published schemas (the JSON files
beside it), response_size.py makes a response fit. docs/contract.md documents all of it.
"""

from events.contract.request import as_request, caller_of, parse_request
from events.contract.schemas import response_problems, schema, webhook_problems

__all__ = [
    "as_request",
    "caller_of",
    "parse_request",
    "response_problems",
    "schema",
    "webhook_problems",
]
