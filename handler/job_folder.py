"""The folder of one job in the bucket: its files never replace those of another request.

An object's metadata names its job. Where no job store knows the id of a request, its folder in the
bucket does: a folder with the files of another job refuses the request, and so does an object that
another job has put there in the meantime. A store that ignores conditional uploads
(conditional_upload.py) notices the latter only for objects that were there before.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from events import aws
from events.errors import IdConflict
from events.job import Job
from handler import leftovers
from handler.artifacts import folder_name
from handler.conditional_upload import NEW_OBJECT, KeyTaken, Transfer, UploadClient
from handler.jobs.fingerprint import file_mark
from handler.leftovers import Attempt

# The newest objects of the folder, one of which names its job unless all of them are foreign.
_MAX_LOOKS = 10
_MAX_UPLOADS = 3


METADATA = "lambda-comfyui-job"


@dataclass(frozen=True, slots=True)
class JobMark:
    """Where the files of a job belong, and the `metadata` that say so.

    One of the metadata is METADATA. Each of the others marks a file of this job as well.
    """

    folder: str
    metadata: Mapping[str, str]


def mark_of(job: Job, attempt: Attempt | None) -> JobMark | None:
    """The mark of the job's files. None for a job with a new id, which no other job has."""
    if not job.caller.is_id_given:
        return None
    metadata = {METADATA: file_mark(job)}
    if attempt:
        metadata[leftovers.METADATA] = attempt.request
    return JobMark(folder_name(job.id), metadata)


class JobFolder:
    """The folder as it was when the job began. Raises IdConflict if it is another job's."""

    def __init__(self, client: UploadClient, bucket: str, mark: JobMark) -> None:
        self._client, self._bucket, self._mark = client, bucket, mark
        self._keys = self._newest_keys()
        for key in self._keys[:_MAX_LOOKS]:
            metadata = self._metadata_of(key)
            if METADATA in metadata:
                self._require_own(key, metadata)
                return

    def upload(
        self, path: str, key: str, extra: dict[str, Any], on_begin: Callable[[Transfer], None]
    ) -> None:
        """Upload the file. Raises IdConflict if the key has an object of another job.

        An object of an earlier attempt at this job is replaced. Needs s3:PutObject, and
        s3:GetObject for a key that is taken. `on_begin` gets each upload that is tried. Raises
        CancelledError, and what boto3 raises.
        """
        extra = {**extra, "Metadata": dict(self._mark.metadata)}
        is_taken = key in self._keys
        for _ in range(_MAX_UPLOADS):
            condition = self._own_object(key) if is_taken else NEW_OBJECT
            try:
                return self._client.upload(path, self._bucket, key, extra, condition, on_begin)
            except KeyTaken:
                is_taken = True
        raise IdConflict(f"input.request_id: another job writes {key} at the same time")

    def _newest_keys(self) -> list[str]:
        """The keys of the folder, the newest first; none if the bucket may not be listed."""
        try:
            page = self._client.s3.list_objects_v2(
                Bucket=self._bucket, Prefix=f"{self._mark.folder}/"
            )
        except Exception:  # boto3's errors; an upload reports them, and has its own condition
            return []
        items = sorted(page.get("Contents", ()), key=lambda item: item["LastModified"])
        return [item["Key"] for item in reversed(items)]

    def _metadata_of(self, key: str) -> dict[str, str]:
        """The metadata of the object; none if it may not be read."""
        try:
            return self._head(key)[0]
        except Exception:  # boto3's errors, as above
            return {}

    def _own_object(self, key: str) -> Mapping[str, str]:
        """The condition to replace the object at `key`."""
        metadata, etag = self._head(key)
        if not etag:
            return NEW_OBJECT
        self._require_own(key, metadata)
        return {"IfMatch": etag}

    def _head(self, key: str) -> tuple[dict[str, str], str]:
        """Metadata and ETag of the object, empty if it does not exist."""
        from botocore.exceptions import ClientError  # noqa: PLC0415 - boto3 is slow to import

        try:
            head = self._client.s3.head_object(Bucket=self._bucket, Key=key)
        except ClientError as error:
            if aws.error_name(error) in ("404", "NoSuchKey"):
                return {}, ""
            raise
        # Metadata are HTTP headers, and some stores change the case of their names.
        return {name.lower(): value for name, value in head["Metadata"].items()}, head["ETag"]

    def _require_own(self, key: str, metadata: Mapping[str, str]) -> None:
        if not metadata.items() & self._mark.metadata.items():
            raise IdConflict(
                f"input.request_id: the bucket has a file of another request with this id: {key};"
                " send the request with a new id"
            )
