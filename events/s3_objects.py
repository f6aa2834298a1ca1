"""A job in an S3 object: a request, or a bare workflow in API format, as JSON.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html. Which objects an event names is
decided in events/s3.py and events/eventbridge.py.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from events import aws
from events.asynchronous import TryAgain
from events.contract.request import EDITOR_FORMAT, MAX_ID_LENGTH, is_editor_format
from events.decode import json_or_text
from events.default_request_id import with_default_id
from events.errors import InvalidRequest
from events.source_log import log_of

MAX_BYTES = 10 * 1024 * 1024
# The object was deleted or overwritten after the event.
_GONE = {"NoSuchKey", "NoSuchVersion", "PreconditionFailed", "404", "412"}
_log = log_of("s3")


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Object:
    """One object in exactly the state that an event names: a version, else an ETag."""

    bucket: str
    key: str
    version: str = ""
    etag: str = ""

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    @property
    def request_id(self) -> str:
        """The job's id, the same for each delivery of the event. A long key is hashed."""
        full = f"{self.bucket}/{self.key}/{self.version or self.etag}"
        if len(full) <= MAX_ID_LENGTH:
            return full
        return f"{self.bucket}/{hashlib.sha256(full.encode('utf-8', 'replace')).hexdigest()}"


def requests_in(objects: list[S3Object]) -> Iterator[Any]:
    """The request in each object whose key ends with `.json`. Other objects are ignored.

    An InvalidRequest takes the place of a request that cannot be read, now or later. Raises
    TryAgain, after the last request, if an object cannot be read now.
    """
    jobs = [item for item in objects if item.key.lower().endswith(".json")]
    for item in objects:
        if item not in jobs:
            _log.info("the key does not end with .json: ignored", extra={"key": item.key})
    if not jobs:
        return
    client = aws.client("s3")
    try:
        # All of them before the first job, which may take an hour.
        contents = [_request_in(client, item) for item in jobs]
    finally:
        client.close()
    yield from (content for content in contents if not isinstance(content, TryAgain))
    if unreadable := [str(content) for content in contents if isinstance(content, TryAgain)]:
        raise TryAgain("; ".join(unreadable))


def _request_in(client: Any, item: S3Object) -> Any:
    content = _read(client, item)
    if isinstance(content, InvalidRequest | TryAgain):
        return content
    value = json_or_text(content)
    if is_editor_format(value):
        return InvalidRequest(f"{item.url}: {EDITOR_FORMAT}")
    request = with_default_id(value, item.request_id)
    if not isinstance(request, dict) or not isinstance(request.get("input"), dict):
        return InvalidRequest(
            f"{item.url}: expected a request, or a workflow in API format, as JSON"
        )
    return request


def _read(client: Any, item: S3Object) -> bytes | InvalidRequest | TryAgain:
    """The object's content; InvalidRequest if it can never be read, TryAgain if it may be later.

    Later is, for example, after the function's role was corrected.
    """
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    # A later object under the same key has its own event.
    state = {"VersionId": item.version} if item.version else {"IfMatch": item.etag}
    condition = {name: value for name, value in state.items() if value}
    try:
        answer = client.get_object(Bucket=item.bucket, Key=item.key, **condition)
        if answer["ContentLength"] > MAX_BYTES:
            return InvalidRequest(
                f"{item.url}: found {answer['ContentLength']} bytes, expected at most {MAX_BYTES}"
            )
        content: bytes = answer["Body"].read()
    except ClientError as error:
        code = aws.error_name(error)
        if code in _GONE:
            return InvalidRequest(f"{item.url}: the object is not there any more ({code})")
        return TryAgain(f"{item.url} cannot be read: {code}")
    except BotoCoreError as error:
        return TryAgain(f"{item.url} cannot be read: {aws.error_name(error)}")
    return content
