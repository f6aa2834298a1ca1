"""The bucket of compiled code: one object for each name of runtime/worker/compile_key.py.

The keys are those of S3_*, else what boto3 finds. Nothing of this is known to ComfyUI's process.
"""

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from events import aws
from handler.conditional_upload import NEW_OBJECT, TAKEN, WITHOUT_CONDITIONS, KeyTaken
from handler.settings import Settings
from handler.storage import S3Target, connect
from runtime.errors import LambdaComfyUIError

_CHUNK_BYTES = 1024 * 1024
_MISSING = ("NoSuchKey", "404")

__all__ = ["CompileStore", "CompileStoreError", "KeyTaken"]


class CompileStoreError(LambdaComfyUIError):
    """S3 does not give or take the object; the message has no credential."""


class CompileStore:
    """The objects below the prefix of COMPILE_CACHE. One thread uses it."""

    def __init__(self, settings: Settings) -> None:
        self._bucket, _, self._prefix = settings.compile_cache.removeprefix("s3://").partition("/")
        self._target = S3Target(
            bucket_name=self._bucket,
            access_key_id=settings.s3_access_key_id,
            secret_access_key=settings.s3_secret_access_key,
            endpoint_url=settings.s3_endpoint_url,
            region=settings.s3_region,
        )
        self._client: Any = None

    def url(self, name: str) -> str:
        return f"s3://{self._bucket}/{self._prefix}{name}"

    def fetch(self, name: str, target: Path, max_bytes: int) -> str | None:
        """Write the object to `target`; its ETag, or None if there is no object.

        Raises CompileStoreError, also for an object of more than `max_bytes`, and OSError.
        """
        with _errors_of_s3():
            try:
                answer = self._s3().get_object(Bucket=self._bucket, Key=self._prefix + name)
            except Exception as error:
                if aws.error_name(error) in _MISSING:
                    return None
                raise
            with closing(answer["Body"]) as body, target.open("wb") as file:
                if answer["ContentLength"] > max_bytes:
                    raise CompileStoreError(
                        f"it has {answer['ContentLength'] / 1e6:.0f} MB, and there is room for"
                        f" {max(max_bytes, 0) / 1e6:.0f} MB"
                    )
                for chunk in body.iter_chunks(_CHUNK_BYTES):
                    file.write(chunk)
            etag: str = answer["ETag"]
            return etag

    def store(self, name: str, source: Path, seen: str | None) -> None:
        """Replace the object whose ETag was `seen`, or make it where None was.

        Raises KeyTaken when there is another object since, if the store can tell;
        CompileStoreError, and OSError.
        """
        condition = {"IfMatch": seen} if seen else NEW_OBJECT
        with _errors_of_s3():
            try:
                self._put(name, source, condition)
            except Exception as error:
                reason = aws.error_name(error)
                if reason in TAKEN:
                    raise KeyTaken(reason) from error
                if reason != WITHOUT_CONDITIONS:
                    raise
                self._put(name, source, {})

    def _put(self, name: str, source: Path, condition: Mapping[str, str]) -> None:
        # In this thread: those of boto3's transfers would keep a worker from ending.
        with source.open("rb") as body:
            self._s3().put_object(
                Bucket=self._bucket, Key=self._prefix + name, Body=body, **condition
            )

    def _s3(self) -> Any:
        self._client = self._client or connect(self._target)
        return self._client


@contextmanager
def _errors_of_s3() -> Iterator[None]:
    try:
        yield
    except (KeyTaken, CompileStoreError, OSError):
        raise
    except Exception as error:
        raise CompileStoreError(f"S3: {aws.error_name(error)}") from error
