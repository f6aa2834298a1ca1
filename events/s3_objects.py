"""A job that lies in a bucket: a request, or a bare workflow in API format, as a JSON object.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html
"""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from events import aws
from events.asynchronous import TryAgain
from events.contract import MAX_ID_LENGTH
from events.decode import request_of
from events.default_request_id import identified
from events.errors import InvalidRequest

MAX_BYTES = 10 * 1024 * 1024
# Gone, or overwritten since: what the event told of cannot be read any more.
_GONE = {"NoSuchKey", "NoSuchVersion", "PreconditionFailed", "404", "412"}
# A child of the handler's logger: its lines have the same form.
_log = logging.getLogger("lambda-comfyui.s3")


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Object:
    """One object in exactly the state that the event tells of."""

    bucket: str
    key: str
    version: str = ""
    etag: str = ""

    @property
    def request_id(self) -> str:
        """The same for each delivery of the event; a long key is told by its hash."""
        state = self.version or self.etag
        full = f"{self.bucket}/{self.key}/{state}"
        if len(full) <= MAX_ID_LENGTH:
            return full
        return f"{self.bucket}/{hashlib.sha256(full.encode('utf-8', 'replace')).hexdigest()}"


def requests_in(objects: list[S3Object]) -> Iterator[Any]:
    """The request in each object whose key ends with .json; the others are left alone.

    Raises TryAgain, after the requests of those that can be read, if another try may read the rest.
    """
    wanted = [item for item in objects if item.key.lower().endswith(".json")]
    for item in objects:
        if item not in wanted:
            _log.info("the key does not end with .json: ignored", extra={"key": item.key})
    if not wanted:
        return
    client = aws.client("s3")
    try:
        # All before the first job, which may take an hour.
        found = [_request_in(client, item) for item in wanted]
    finally:
        client.close()
    yield from (request for request in found if not isinstance(request, TryAgain))
    if again := [str(item) for item in found if isinstance(item, TryAgain)]:
        raise TryAgain("; ".join(again))


def _request_in(client: Any, item: S3Object) -> Any:
    text = _read(client, item)
    if isinstance(text, InvalidRequest | TryAgain):
        return text
    found = request_of(text)
    if _is_workflow(found):
        found = {"input": {"workflow_json": found}}
    request = identified(found, item.request_id)
    if not isinstance(request, dict) or not isinstance(request.get("input"), dict):
        place = f"s3://{item.bucket}/{item.key}"
        return InvalidRequest(f"{place}: expected a request, or a workflow in API format, as JSON")
    return request


def _read(client: Any, item: S3Object) -> bytes | InvalidRequest | TryAgain:
    """The object; an InvalidRequest if no other try can read it.

    A TryAgain if one may, such as after somebody mended the role.
    """
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    place = f"s3://{item.bucket}/{item.key}"
    # A later object under the same key has an event of its own.
    state = {"VersionId": item.version} if item.version else {"IfMatch": item.etag}
    exact = {name: value for name, value in state.items() if value}
    try:
        answer = client.get_object(Bucket=item.bucket, Key=item.key, **exact)
        if answer["ContentLength"] > MAX_BYTES:
            return InvalidRequest(
                f"{place}: found {answer['ContentLength']} bytes, expected at most {MAX_BYTES}"
            )
        content: bytes = answer["Body"].read()
    except ClientError as error:
        code = aws.reason(error)
        if code in _GONE:
            return InvalidRequest(f"{place}: the object is not there any more ({code})")
        return TryAgain(f"{place} cannot be read: {code}")
    except BotoCoreError as error:
        return TryAgain(f"{place} cannot be read: {aws.reason(error)}")
    return content


def _is_workflow(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and bool(found)
        and all(isinstance(node, dict) and "class_type" in node for node in found.values())
    )
