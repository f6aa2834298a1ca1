"""An S3 client that uploads a file only if its key is free, or holds the object that was seen.

boto3's transfers pass no conditions on, so they are added to the two calls that create an
object: https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html. Some
S3-compatible stores ignore them, others refuse them. What is done about a key that is taken is
decided in job_folder.py.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from events import aws

_CREATES_OBJECT = ("PutObject", "CompleteMultipartUpload")
TAKEN = {
    "PreconditionFailed",
    # Another upload to the same key is under way.
    "ConditionalRequestConflict",
    # An object that should be replaced was deleted.
    "NoSuchKey",
}
WITHOUT_CONDITIONS = "NotImplemented"
NEW_OBJECT = {"IfNoneMatch": "*"}


class Transfer(Protocol):
    """An upload under way."""

    def cancel(self) -> None:
        """Send nothing more of the file; an upload that has ended stays so."""


class KeyTaken(Exception):
    """The condition was not met: the key has an object, or another one than was seen."""


class UploadClient:
    """boto3's S3 client `s3`, with conditional uploads.

    Threads may share it, one for each key at a time.
    """

    def __init__(self, s3: Any) -> None:
        self.s3 = s3
        self._conditions: dict[tuple[str, str], Mapping[str, str]] = {}
        for operation in _CREATES_OBJECT:
            s3.meta.events.register(f"before-parameter-build.s3.{operation}", self._add_condition)

    def upload(
        self,
        path: str,
        bucket: str,
        key: str,
        extra: dict[str, Any],
        condition: Mapping[str, str],
        on_begin: Callable[[Transfer], None],
    ) -> None:
        """Upload the file on the condition NEW_OBJECT, or `{"IfMatch": etag}`; none if it is empty.

        `on_begin` gets each upload that is tried; another thread may cancel it. Raises KeyTaken,
        CancelledError, and what boto3 raises.
        """
        # With the first upload: it takes longer to import than the rest of the handler.
        from botocore.exceptions import ClientError  # noqa: PLC0415

        self._conditions[bucket, key] = condition
        try:
            self._upload(path, bucket, key, extra, on_begin)
        except ClientError as error:
            reason = aws.error_name(error)
            if reason in TAKEN:
                raise KeyTaken(reason) from error
            if reason != WITHOUT_CONDITIONS or not condition:
                raise
            self._conditions.pop((bucket, key))
            self._upload(path, bucket, key, extra, on_begin)
        finally:
            self._conditions.pop((bucket, key), None)

    def _upload(
        self,
        path: str,
        bucket: str,
        key: str,
        extra: dict[str, Any],
        on_begin: Callable[[Transfer], None],
    ) -> None:
        from boto3.s3.transfer import TransferConfig, create_transfer_manager  # noqa: PLC0415

        # What `upload_file` does, which cannot be cancelled.
        with create_transfer_manager(self.s3, TransferConfig()) as manager:
            transfer = manager.upload(path, bucket, key, extra)
            on_begin(transfer)
            transfer.result()

    def _add_condition(self, params: dict[str, Any], **_: Any) -> None:
        params.update(self._conditions.get((params["Bucket"], params["Key"]), {}))
