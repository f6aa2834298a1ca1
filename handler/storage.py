"""S3: uploads the artifacts of a job while it still runs, and signs the URLs to read them.

What is uploaded, and under which key, is decided in artifacts.py; which files may be replaced, in
job_folder.py; what is removed again, in leftovers.py. boto3 is imported when the first bucket is
used: its import takes longer than all others of the handler.
"""

import mimetypes
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from events import aws
from events.errors import IdConflict, InvalidRequest, Misconfigured
from events.job import S3Override
from handler.artifacts import Artifact
from handler.callers_urls import is_callers_endpoint
from handler.conditional_upload import Transfer, UploadClient
from handler.emit import emit
from handler.job_events import ArtifactFailed, ArtifactKept, ArtifactStored, JobEvent
from handler.job_folder import JobFolder, JobMark
from handler.leftovers import Attempt, remove_leftovers
from handler.outbound import Allowed
from handler.settings import Settings

PARALLEL_UPLOADS = 4
MAX_CLIENTS = 8
# SigV4 query signatures: https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html
MAX_URL_EXPIRES_S = 604_800

_HINTS = {
    "NoCredentialsError": "; give s3.access_key_id and s3.secret_access_key, or a role",
    "PartialCredentialsError": "; give both s3.access_key_id and s3.secret_access_key",
    "InvalidRegionError": "; check s3.region (or S3_REGION)",
    "EndpointResolutionError": "; check s3.endpoint_url (or S3_ENDPOINT_URL)",
    "EndpointConnectionError": "; no server answers at s3.endpoint_url (or S3_ENDPOINT_URL)",
    "HTTPClientError": "; check s3.endpoint_url (or S3_ENDPOINT_URL)",
    "ParamValidationError": "; check s3.bucket_name (or S3_BUCKET_NAME)",
}


@dataclass(frozen=True, slots=True)
class S3Target:
    """The bucket of a job. Without keys, boto3's credential chain is used.

    `allowed` restricts the addresses of a caller's store; None for a store of the environment.
    """

    bucket_name: str
    access_key_id: str = field(default="", repr=False)
    secret_access_key: str = field(default="", repr=False)
    endpoint_url: str = ""
    region: str = ""
    allowed: Allowed | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """The upload of one artifact: its URL, or the reason why there is none.

    `is_conflict` is True if the file would have replaced one of another request.
    `url_expires_at` is a time of RFC 3339 in UTC.
    """

    url: str = ""
    url_expires_at: str = ""
    upload_error: str = ""
    is_conflict: bool = False


def target_of(override: S3Override, settings: Settings) -> S3Target | None:
    """The request's fields, each one replaced by the environment's if it is empty.

    None where neither names a bucket.
    """
    bucket = override.bucket_name or settings.s3_bucket_name
    if not bucket:
        return None
    return S3Target(
        bucket_name=bucket,
        access_key_id=override.access_key_id or settings.s3_access_key_id,
        secret_access_key=override.secret_access_key or settings.s3_secret_access_key,
        endpoint_url=override.endpoint_url or settings.s3_endpoint_url,
        region=override.region or settings.s3_region,
        allowed=settings.outbound_allow if is_callers_endpoint(override, settings) else None,
    )


class Storage:
    """The clients of a handler process, kept between jobs."""

    def __init__(self, url_expires_s: float) -> None:
        self._url_expires_s = int(min(url_expires_s, MAX_URL_EXPIRES_S))
        self._clients: dict[S3Target, _Client] = {}

    @contextmanager
    def uploads(
        self, target: S3Target, *, is_callers: bool, attempt: Attempt | None, mark: JobMark | None
    ) -> Iterator["Uploads"]:
        """The uploads of one job. Those that have not ended when the context ends are stopped.

        `is_callers` says whether the request has S3 fields of its own; `attempt` is that of the
        job's claim, if it has one; `mark` is that of its files, if its id can come again.
        """
        # Threads for this job alone: a bucket that hangs does not delay another job's files.
        pool = ThreadPoolExecutor(PARALLEL_UPLOADS, thread_name_prefix="upload")
        uploads = None
        try:
            # Begun now: boto3 is imported while ComfyUI works.
            client = pool.submit(self._client, target)
            uploads = Uploads(
                pool,
                client,
                target,
                self._url_expires_s,
                is_callers=is_callers,
                attempt=attempt,
                mark=mark,
            )
            yield uploads
        finally:
            if uploads:
                uploads.stop()
            pool.shutdown(wait=False, cancel_futures=True)

    def _client(self, target: S3Target) -> "_Client":
        if target not in self._clients:
            # Requests may name any number of targets.
            if len(self._clients) >= MAX_CLIENTS:
                self._clients.clear()
            self._clients[target] = _make_client(target)
        return self._clients[target]


class Uploads:
    """Uploads the artifacts of one job in threads, while the job goes on."""

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        client: "Future[_Client]",
        target: S3Target,
        url_expires_s: int,
        *,
        is_callers: bool,
        attempt: Attempt | None,
        mark: JobMark | None,
    ) -> None:
        self._is_over = False
        self._transfers: list[Transfer] = []
        self._pool, self._client, self._bucket = pool, client, target.bucket_name
        self._url_expires_s, self._is_callers = url_expires_s, is_callers
        self._attempt = attempt
        # Begun now: the folder is listed while ComfyUI works.
        self._folder = pool.submit(self._open_folder, mark) if mark else None

    def check(self) -> None:
        """Refuse settings that cannot work, before the GPU spends time on the job.

        Raises InvalidRequest when they come from the request, else Misconfigured; and IdConflict if
        the job's folder is known to be another job's. Else the first upload finds that out.
        """
        try:
            self._sign(self._client.result(), "check")
        except Exception as error:
            reason = f"input.s3: {_reason(error)}"
            raise (InvalidRequest if self._is_callers else Misconfigured)(reason) from error
        if self._folder and self._folder.done():
            self._folder.result()

    def begin(self, artifact: Artifact) -> "Future[Stored]":
        """Begin to upload one artifact. The future's call never raises."""
        return self._pool.submit(self._upload, artifact)

    def remove_leftovers(
        self, artifacts: Iterable[Artifact], *, max_age_s: float, timeout_s: float | None
    ) -> None:
        """Remove the files of earlier attempts beside these artifacts, in `timeout_s` at most.

        A failure is emitted, not raised: the response names the files of this attempt alone.
        """
        keys = {artifact.key for artifact in artifacts}
        if self._attempt is None or not keys:
            return
        client = self._client.result()
        removal = self._pool.submit(
            remove_leftovers, client.s3, self._bucket, keys, self._attempt, max_age_s
        )
        try:
            removal.result(timeout_s)
        except Exception as error:
            emit(ArtifactKept(reason=_reason(error, "the clean-up")))

    def stop(self) -> None:
        """The job is over: nobody waits for the uploads that are under way."""
        self._is_over = True
        for transfer in list(self._transfers):
            transfer.cancel()

    def _upload(self, artifact: Artifact) -> Stored:
        if artifact.problem:
            return Stored(upload_error=artifact.problem)
        began = time.monotonic()
        try:
            client = self._client.result()
            content_type = mimetypes.guess_type(artifact.filename)[0] or "application/octet-stream"
            path = str(artifact.local_path)
            extra: dict[str, Any] = {"ContentType": content_type}
            if self._folder:
                self._folder.result().upload(path, artifact.key, extra, self._note)
            else:
                client.uploads.upload(path, self._bucket, artifact.key, extra, {}, self._note)
            stored = self._sign(client, artifact.key)
        except IdConflict as error:
            self._emit(ArtifactFailed(file=artifact.filename, reason=error.message))
            return Stored(upload_error=error.message, is_conflict=True)
        except Exception as error:
            reason = _reason(error)
            self._emit(ArtifactFailed(file=artifact.filename, reason=reason))
            return Stored(upload_error=reason)
        size_bytes = Path(path).stat().st_size
        ms = round((time.monotonic() - began) * 1000, 1)
        self._emit(ArtifactStored(file=artifact.filename, size_bytes=size_bytes, ms=ms))
        return stored

    def _emit(self, event: JobEvent) -> None:
        # Later it would be an event of the next job.
        if not self._is_over:
            emit(event)

    def _note(self, transfer: Transfer) -> None:
        self._transfers.append(transfer)
        if self._is_over:
            transfer.cancel()

    def _open_folder(self, mark: JobMark) -> JobFolder:
        return JobFolder(self._client.result().uploads, self._bucket, mark)

    def _sign(self, client: "_Client", key: str) -> Stored:
        target = {"Bucket": self._bucket, "Key": key}
        expires_s = client.valid_for_s(self._url_expires_s)
        # Before signing: the URL ends a moment later than it says, never earlier.
        expires_at = datetime.now(UTC) + timedelta(seconds=expires_s)
        url: str = client.s3.generate_presigned_url("get_object", target, ExpiresIn=expires_s)
        return Stored(url=url, url_expires_at=expires_at.strftime("%Y-%m-%dT%H:%M:%SZ"))


@dataclass(frozen=True, slots=True)
class _Client:
    """boto3's client of one target, and the credentials that it signs with."""

    uploads: UploadClient
    credentials: Any
    """None for keys of a request or a setting, which do not expire."""

    @property
    def s3(self) -> Any:
        return self.uploads.s3

    def valid_for_s(self, most_s: int) -> int:
        """The seconds until the credentials expire, 1 to `most_s`: a URL does not outlive them.

        `most_s` where nothing says when: keys without a session, or a session token of the
        environment.
        https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-presigned-url.html
        """
        if not hasattr(self.credentials, "refresh_needed"):
            return most_s
        # Refreshes credentials that are about to expire, as signing does.
        self.credentials.get_frozen_credentials()
        left_s = bisect_left(range(1, most_s + 1), True, key=self.credentials.refresh_needed)
        # One second less: a signature counts from the whole second before.
        return left_s if left_s == most_s else max(left_s - 1, 1)


def connect(target: S3Target) -> Any:
    """A client of boto3 for the store of a target. Raises what boto3 raises."""
    return _make_client(target).uploads.s3


def _make_client(target: S3Target) -> _Client:
    import boto3  # noqa: PLC0415 - see the module's first lines
    from botocore.config import Config  # noqa: PLC0415

    config = Config(
        signature_version="s3v4",
        connect_timeout=10,
        read_timeout=30,
        retries={"mode": "standard", "total_max_attempts": 3},
        # Some S3-compatible stores refuse the checksums that boto3 adds by default.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path" if target.endpoint_url else "auto"},
    )
    session = boto3.session.Session()
    s3 = session.client(
        "s3",
        endpoint_url=target.endpoint_url or None,
        region_name=target.region or ("us-east-1" if target.endpoint_url else None),
        aws_access_key_id=target.access_key_id or None,
        aws_secret_access_key=target.secret_access_key or None,
        config=config,
    )
    if target.allowed is not None:
        from handler import outbound_connections  # noqa: PLC0415 - it imports requests

        outbound_connections.restrict(s3, target.allowed)
    return _Client(UploadClient(s3), None if target.access_key_id else session.get_credentials())


def _reason(error: Exception, what: str = "the upload") -> str:
    """Why `what` failed, without any text that may hold a credential."""
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", "?")
        return f"S3 refused {what}: {aws.error_name(error)} (HTTP {status})"
    if isinstance(error, BotoCoreError):
        name = aws.error_name(error)
        return f"S3 could not be used: {name}" + _HINTS.get(name, "")
    if isinstance(error, ValueError):
        return "S3 could not be used: check s3.endpoint_url (or S3_ENDPOINT_URL)"
    return f"{what} failed: {type(error).__name__}"
