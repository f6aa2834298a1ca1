"""What a store keeps of a response: all of it, or without what its files' URLs lead to.

What is left out of a response that is too large is decided in events/contract/response_size.py;
docs/contract.md ("Repeated requests") says the same to users.
"""

from dataclasses import dataclass

from events.contract.response_size import shrink, shrink_for_store
from handler.jobs.record import Response, encode_response
from handler.log import logger


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """What is stored of a response.

    `answers_repeats`: the same request gets it as its answer, and does not run again.
    """

    response: Response
    answers_repeats: bool


def stored_response(response: Response, max_bytes: int | None) -> StoredResponse:
    """The response within the store's limit.

    A failure answers no repeat: the request that is sent again comes with another node, model or
    timeout. Neither does a success whose only copy of a file would be lost.
    """
    is_success = response["status"] == "completed" and "error" not in response
    if max_bytes is None or _size(response) <= max_bytes:
        return StoredResponse(response, answers_repeats=is_success)
    stored = shrink_for_store(response, max_bytes, _size)
    if stored is not None:
        return StoredResponse(stored, answers_repeats=is_success)
    if is_success:
        logger.warning(
            "the response is too large for the job store and is stored without its files: the same"
            " request would run again"
        )
    return StoredResponse(shrink(response, max_bytes, _size), answers_repeats=False)


def _size(response: Response) -> int:
    return len(encode_response(response))
