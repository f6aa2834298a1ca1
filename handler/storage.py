"""The S3 side: upload the artifacts of a job while it still runs, and sign the URLs to read them.

boto3 is imported when the first bucket is used: it costs more than the rest of the handler.
"""

import mimetypes
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from events.job import S3Override
from handler.artifacts import Artifact
from handler.log import emit, logger
from handler.settings import Settings

PARALLEL_UPLOADS = 4
# SigV4 query signatures: https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html
MAX_URL_EXPIRES_S = 604_800

_HINTS = {
    "NoCredentialsError": "; give s3.access_key_id and s3.secret_access_key, or a role",
    "PartialCredentialsError": "; give both s3.access_key_id and s3.secret_access_key",
    "EndpointConnectionError": "; nobody answers at s3.endpoint_url (or S3_ENDPOINT_URL)",
    "ParamValidationError": "; check s3.bucket_name (or S3_BUCKET_NAME)",
}


@dataclass(frozen=True, slots=True)
class S3Target:
    """Where the files of a job go. Without keys, the ordinary AWS credential chain is used."""

    bucket_name: str
    access_key_id: str = field(default="", repr=False)
    secret_access_key: str = field(default="", repr=False)
    endpoint_url: str = ""
    region: str = ""


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of one artifact: a URL, or the reason why there is none."""

    url: str = ""
    upload_error: str = ""


def target_of(override: S3Override, settings: Settings) -> S3Target | None:
    """The request's fields over the environment's, one by one; None where no bucket is named."""
    bucket = override.bucket_name or settings.s3_bucket_name
    if not bucket:
        return None
    return S3Target(
        bucket_name=bucket,
        access_key_id=override.access_key_id or settings.s3_access_key_id,
        secret_access_key=override.secret_access_key or settings.s3_secret_access_key,
        endpoint_url=override.endpoint_url or settings.s3_endpoint_url,
        region=override.region or settings.s3_region,
    )


class Storage:
    """Uploads in threads of its own; one object per handler process."""

    def __init__(self, url_expires_s: float) -> None:
        self._url_expires_s = int(min(url_expires_s, MAX_URL_EXPIRES_S))
        self._pool = ThreadPoolExecutor(PARALLEL_UPLOADS, thread_name_prefix="upload")
        self._clients: dict[S3Target, Future[Any]] = {}

    def prepare(self, target: S3Target) -> None:
        """Begin to make the client, so that it is there when the first file is."""
        self._client(target)

    def upload(self, target: S3Target, artifact: Artifact) -> "Future[Stored]":
        """Begin to upload one artifact. The future never raises."""
        client = self._client(target)
        return self._pool.submit(self._upload, client, target.bucket_name, artifact)

    def _client(self, target: S3Target) -> Future[Any]:
        if target not in self._clients:
            # The environment's target stays; those of requests come and go with their callers.
            if len(self._clients) >= 8:
                self._clients.clear()
            self._clients[target] = self._pool.submit(_make_client, target)
        return self._clients[target]

    def _upload(self, client: Future[Any], bucket: str, artifact: Artifact) -> Stored:
        if artifact.problem:
            return Stored(upload_error=artifact.problem)
        began = time.monotonic()
        try:
            s3 = client.result()
            kind = mimetypes.guess_type(artifact.filename)[0] or "application/octet-stream"
            path = str(artifact.local_path)
            s3.upload_file(path, bucket, artifact.key, ExtraArgs={"ContentType": kind})
            place = {"Bucket": bucket, "Key": artifact.key}
            url = s3.generate_presigned_url("get_object", place, ExpiresIn=self._url_expires_s)
        except Exception as error:
            reason = _reason(error)
            logger.warning(
                "an artifact was not stored",
                extra={"event": "artifact.failed", "file": artifact.filename, "reason": reason},
            )
            return Stored(upload_error=reason)
        emit(
            "artifact.stored",
            f"stored {artifact.filename}",
            file=artifact.filename,
            size_bytes=Path(path).stat().st_size,
            ms=round((time.monotonic() - began) * 1000, 1),
        )
        return Stored(url=url)


def _make_client(target: S3Target) -> Any:
    import boto3  # noqa: PLC0415 - see the module's first lines
    from botocore.config import Config  # noqa: PLC0415

    config = Config(
        signature_version="s3v4",
        connect_timeout=10,
        read_timeout=60,
        retries={"mode": "standard", "total_max_attempts": 4},
        # S3-compatible stores stumble over the checksums that boto3 adds by default.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path" if target.endpoint_url else "auto"},
    )
    return boto3.session.Session().client(
        "s3",
        endpoint_url=target.endpoint_url or None,
        region_name=target.region or ("us-east-1" if target.endpoint_url else None),
        aws_access_key_id=target.access_key_id or None,
        aws_secret_access_key=target.secret_access_key or None,
        config=config,
    )


def _reason(error: Exception) -> str:
    """Why an upload failed, without anything that may hold a credential."""
    from boto3.exceptions import S3UploadFailedError  # noqa: PLC0415
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    cause = error.__context__ if isinstance(error, S3UploadFailedError) else error
    if isinstance(cause, ClientError):
        answer = cause.response
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", "?")
        code = answer.get("Error", {}).get("Code", "unknown error")
        return f"S3 refused the upload: {code} (HTTP {status})"
    if isinstance(cause, BotoCoreError):
        name = type(cause).__name__
        return f"S3 could not be used: {name}" + _HINTS.get(name, "")
    return f"the upload failed: {type(cause).__name__}"
