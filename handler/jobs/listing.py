"""A page of a list of records, and the cursor that says where the next page begins.

To a caller the cursor is an opaque text.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from handler.jobs.record import UnreadableRecord, from_item
from handler.jobs.store import JobPage

_SEPARATOR = ":"


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last record of a page: when it was created, in milliseconds of Unix time, and its id."""

    created_ms: int
    record_id: str

    def encode(self) -> str:
        text = f"{self.created_ms}{_SEPARATOR}{self.record_id}"
        return base64.urlsafe_b64encode(text.encode("utf-8", "surrogatepass")).decode()

    @classmethod
    def decode(cls, raw: str) -> "Cursor":
        """Raises ValueError for a text that `encode` has not made."""
        try:
            text = base64.b64decode(raw, altchars=b"-_", validate=True)
            created, separator, record_id = text.decode("utf-8", "surrogatepass").partition(
                _SEPARATOR
            )
            if not separator:
                raise ValueError
            return cls(int(created), record_id)
        except (ValueError, binascii.Error):
            raise ValueError("the cursor is none that a list of jobs has returned") from None


def page_of(items: Sequence[Mapping[str, Any]], limit: int) -> JobPage:
    """The page of the first `limit` items; another one follows if there are more of them."""
    records = []
    for item in items[:limit]:
        try:
            records.append(from_item(item))
        except UnreadableRecord:
            continue
    if len(items) <= limit:
        return JobPage(tuple(records))
    last = items[limit - 1]
    return JobPage(tuple(records), Cursor(int(last["created"]), str(last["id"])).encode())
