"""What a store keeps of a response: a success whole, or without what its files' URLs lead to.

What is left out of a response that is too large is decided in events/contract/response_size.py;
docs/contract.md ("Repeated requests") says the same to users.
"""

from events.contract.response_size import shrink_for_store
from handler.jobs.record import Response, encode_response
from handler.log import logger


def storable(response: Response, max_bytes: int | None) -> Response | None:
    """The response within the store's limit, None if it must not be stored.

    No failure is stored: the request that is sent again comes with another node, model or timeout.
    And no success without a file whose only place is the response.
    """
    if response["status"] != "completed" or "error" in response:
        return None
    if max_bytes is None:
        return response
    stored = shrink_for_store(response, max_bytes, _size)
    if stored is None:
        logger.warning(
            "the response is too large for the job store and is not stored: the same request would"
            " run again"
        )
    return stored


def _size(response: Response) -> int:
    return len(encode_response(response))
