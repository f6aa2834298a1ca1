"""Reads one file: from a URL, a bucket, or the text itself.

Which addresses a URL may lead to is decided in handler/outbound.py; each redirect is checked again.
"""

import base64
import binascii
import mimetypes
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urljoin, urlsplit

from events import aws
from events.job import S3Override
from handler.inputs.references import is_reference
from handler.outbound import Allowed, ForbiddenAddress
from handler.settings import Settings

_CHUNK_BYTES = 1024 * 1024
_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S = 10, 30
_MAX_REDIRECTS = 5
_MAX_TRIES = 3
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
# What only the caller can mend: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
_NO_OBJECT = frozenset(
    {
        *("NoSuchKey", "NoSuchBucket", "InvalidBucketName", "ParamValidationError"),
        *("AccessDenied", "InvalidObjectState", "PermanentRedirect", "403", "404"),
    }
)
_WRONG_KEYS = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthorizationHeaderMalformed"}
)
_NOT_IN_BASE64 = re.compile(r"\s+")
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}")


class BadReference(ValueError):
    """The file cannot be had this way; the message says why, without the query of a URL."""


class NotReachable(OSError):
    """The file may be had later; the message says what did not work."""


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of a file, piece by piece, and the suffix of its name."""

    chunks: Iterator[bytes]
    suffix: str


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_bytes` of one file; `check` raises when there is no more time for it."""

    max_bytes: int
    check: Callable[[], None]


@contextmanager
def open_source(
    value: str, override: S3Override, settings: Settings, limits: Limits
) -> Iterator[Content]:
    """The file that a reference leads to. Raises BadReference, NotReachable, and what `check` does.

    The chunks raise them, too.
    """
    scheme = value.partition(":")[0].lower() if is_reference(value) else ""
    if scheme in ("http", "https") and "://" in value:
        with _open_url(value, settings.outbound_allow, limits) as content:
            yield content
    elif scheme == "s3":
        yield _open_object(value, override, settings, limits)
    else:
        yield _decode(value, limits)


@contextmanager
def _open_url(url: str, allowed: Allowed, limits: Limits) -> Iterator[Content]:
    import requests  # noqa: PLC0415 - only where a job has such an input

    from handler.outbound_connections import callers_session  # noqa: PLC0415

    with callers_session(allowed) as session:
        try:
            answer = _get(session, url, limits)
        except (BadReference, NotReachable):
            raise
        except ForbiddenAddress as error:
            raise BadReference(str(error)) from None
        except ValueError:
            raise BadReference("it is no URL that can be called, or redirects to none") from None
        except requests.exceptions.SSLError:
            raise NotReachable("its server's certificate cannot be verified") from None
        except requests.Timeout:
            raise NotReachable("its server does not answer in time") from None
        except requests.RequestException:
            raise NotReachable("its server cannot be reached, or does not answer") from None
        with answer:
            yield Content(_read(answer, limits), _suffix_of(urlsplit(url).path, answer.headers))


def _get(session: Any, url: str, limits: Limits) -> Any:
    """The answer to a GET, after redirects, and after other tries where that may help."""
    headers = {"Accept-Encoding": "identity", "User-Agent": "lambda-comfyui"}
    redirects, tries = 0, 0
    while True:
        limits.check()
        answer = session.get(
            url,
            headers=headers,
            stream=True,
            allow_redirects=False,
            timeout=(_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S),
        )
        status = answer.status_code
        if status in _REDIRECTS and "location" in answer.headers:
            answer.close()
            redirects += 1
            url = urljoin(url, answer.headers["location"])
            if redirects > _MAX_REDIRECTS or urlsplit(url).scheme not in ("http", "https"):
                raise BadReference(f"it redirects more than {_MAX_REDIRECTS} times, or not to HTTP")
            continue
        if status == 200:
            return answer
        answer.close()
        tries += 1
        if status not in _TRANSIENT:
            raise BadReference(f"its server answered HTTP {status}")
        if tries == _MAX_TRIES:
            raise NotReachable(f"its server answered HTTP {status}, {tries} times")
        time.sleep(0.5 * tries)


def _read(answer: Any, limits: Limits) -> Iterator[bytes]:
    """The body as it was sent. A coded one is refused: its size would not be known."""
    import urllib3  # noqa: PLC0415

    coding = answer.headers.get("content-encoding", "identity").lower()
    if coding not in ("", "identity"):
        raise BadReference(f"its server sent it as {coding}, although it was asked not to")
    announced = answer.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limits.max_bytes:
        raise _too_large(limits)
    try:
        while chunk := answer.raw.read1(_CHUNK_BYTES, decode_content=False):
            limits.check()
            yield chunk
    except NotReachable:
        raise
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise NotReachable(f"its download was cut off: {type(error).__name__}") from None


def _open_object(value: str, override: S3Override, settings: Settings, limits: Limits) -> Content:
    """An object, by the keys of the request, or by the worker's if its operator has said so."""
    bucket, _, key = value.partition("://")[2].partition("/")
    if not bucket or not key:
        raise BadReference("expected s3://BUCKET/KEY")
    is_callers = bool(override.access_key_id and override.secret_access_key)
    if not is_callers and bucket not in settings.input_buckets:
        raise BadReference(
            f"the worker's role reads no input from the bucket {bucket[:63]!r}; give input.s3 with"
            " keys that may, or let the operator name the bucket in INPUT_BUCKETS"
        )
    from handler.storage import connect, target_of  # noqa: PLC0415

    given = replace(override if is_callers else S3Override(), bucket_name=bucket)
    target = target_of(given, settings)
    assert target is not None, "its bucket is given"
    try:
        answer = connect(target).get_object(Bucket=bucket, Key=unquote(key))
    except ForbiddenAddress as error:
        raise BadReference(str(error)) from None
    except ValueError:
        raise BadReference("its store cannot be called: check s3.endpoint_url") from None
    except Exception as error:
        name = aws.error_name(error)
        if name in _NO_OBJECT or (is_callers and name in _WRONG_KEYS):
            raise BadReference(f"S3 answered {name}") from None
        raise NotReachable(f"S3 does not answer: {name}") from None
    if answer["ContentLength"] > limits.max_bytes:
        raise _too_large(limits)
    return Content(_read_object(answer["Body"], limits), _suffix_of(key, {}))


def _read_object(body: Any, limits: Limits) -> Iterator[bytes]:
    from botocore.exceptions import BotoCoreError  # noqa: PLC0415
    from urllib3.exceptions import HTTPError  # noqa: PLC0415

    try:
        for chunk in body.iter_chunks(_CHUNK_BYTES):
            limits.check()
            yield chunk
    except NotReachable:
        raise
    except (BotoCoreError, HTTPError, OSError) as error:
        raise NotReachable(f"its download was cut off: {type(error).__name__}") from None


def _decode(value: str, limits: Limits) -> Content:
    """The file in a data: URI (RFC 2397), or in base64 alone."""
    media_type, data, is_base64 = "", value, True
    if value[:5].lower() == "data:":
        head, _, data = value[5:].partition(",")
        media_type, *parameters = head.split(";")
        is_base64 = "base64" in (parameter.strip().lower() for parameter in parameters)
    if is_base64:
        text = _NOT_IN_BASE64.sub("", unquote(data)).replace("-", "+").replace("_", "/")
        # Some encoders leave the padding out.
        text = text.rstrip("=")
        try:
            content = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except (ValueError, binascii.Error):
            raise BadReference("its base64 is damaged: wrong length or characters") from None
    else:
        content = unquote_to_bytes(data)
    if not content:
        raise BadReference("its data is empty")
    if len(content) > limits.max_bytes:
        raise _too_large(limits)
    suffix = mimetypes.guess_extension(media_type.strip().lower()) or _suffix_of_bytes(content)
    return Content(iter([content]), suffix)


def _suffix_of(path: str, headers: Any) -> str:
    """That of the path, else that of the media type; loaders look at it."""
    suffix = PurePosixPath(unquote(path)).suffix
    if _SUFFIX.fullmatch(suffix):
        return suffix.lower()
    media_type = str(headers.get("content-type", "")).partition(";")[0].strip().lower()
    return mimetypes.guess_extension(media_type) or ""


def _suffix_of_bytes(content: bytes) -> str:
    for suffix, offset, mark in (
        (".png", 0, b"\x89PNG"),
        (".jpg", 0, b"\xff\xd8\xff"),
        (".gif", 0, b"GIF8"),
        (".webp", 8, b"WEBP"),
        (".mp4", 4, b"ftyp"),
    ):
        if content[offset:].startswith(mark):
            return suffix
    return ""


def _too_large(limits: Limits) -> BadReference:
    return BadReference(
        f"it is larger than {limits.max_bytes // 1024 // 1024} MiB, the limit of INPUT_MAX_MB"
    )
