"""What the status of a source's answer means: the file, a refusal for good, or "later"."""

import email.utils
import http.client
import re
import time

from runtime.models.errors import (
    AccessDeniedError,
    ServerFailedError,
    SourceChangedError,
    SourceMissingError,
    WrongSizeError,
)
from runtime.models.http_connection import HttpConnection

# https://www.rfc-editor.org/rfc/rfc9110#name-status-codes
_LATER = frozenset({408, 425, 429, 500, 502, 503, 504})
# https://www.iana.org/assignments/http-parameters: `aws-chunked` and others change no byte.
_COMPRESSED = frozenset({"br", "compress", "deflate", "gzip", "x-compress", "x-gzip", "zstd"})
_MAX_RETRY_AFTER_S = 120.0
_MAX_ERROR_BYTES = 4096


def check_status(
    answer: http.client.HTTPResponse, connection: HttpConnection, shown_source: str
) -> None:
    """Nothing for the file or a range of it. Raises DownloadError for all else.

    Sites that want a login may send its page with the status 200. Of a file that a server
    compresses, neither the size nor the ranges are those of the file.
    """
    status = answer.status
    if status in (200, 206):
        if answer.headers.get_content_type() == "text/html":
            hint = _access_hint(shown_source)
            raise AccessDeniedError(f"{shown_source}: sends a web page instead of a file; {hint}")
        if (coding := answer.headers.get("Content-Encoding", "").lower()) in _COMPRESSED:
            raise WrongSizeError(
                f"{shown_source}: sends the file compressed ({coding}), although it was asked not"
                " to; name a server that sends it as it is"
            )
        return
    said = f"{shown_source}: HTTP {status} {_code_of_s3(answer, connection) or answer.reason}"
    said = said.rstrip()
    if status in _LATER or status >= 500:
        raise ServerFailedError(said, retry_after_s=_retry_after(answer))
    match status:
        case 404 | 410:
            raise SourceMissingError(f"{said}; correct the source")
        case 412:
            raise SourceChangedError(f"{said}; the file was replaced during the download")
        case 416:
            raise WrongSizeError(f"{said}; the file is shorter than expected")
        case _:
            raise AccessDeniedError(f"{said}; {_access_hint(shown_source)}")


def _code_of_s3(answer: http.client.HTTPResponse, connection: HttpConnection) -> str:
    """https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html"""
    if "xml" not in answer.headers.get("Content-Type", ""):
        return ""
    code = re.search(rb"<Code>(\w+)</Code>", connection.read_beginning(_MAX_ERROR_BYTES))
    return code[1].decode() if code else ""


def _access_hint(source: str) -> str:
    if source.startswith("s3://"):
        return (
            "the keys of S3_* or of the AWS credential chain may not read it, or there is no such"
            " object and they may not list the bucket"
        )
    if source.startswith("hf://") or "huggingface.co/" in source:
        return "set HF_TOKEN to a token with access, and accept the model's terms on its page"
    if "civitai.com/" in source:
        return "set CIVITAI_TOKEN"
    return "the server wants credentials that this worker does not have"


def _retry_after(answer: http.client.HTTPResponse) -> float | None:
    """Seconds, from a number or a date: https://www.rfc-editor.org/rfc/rfc9110#field.retry-after"""
    raw = answer.headers.get("Retry-After", "").strip()
    if raw.isdecimal():
        return min(float(raw), _MAX_RETRY_AFTER_S)
    try:
        at = email.utils.parsedate_to_datetime(raw).timestamp()
    except (ValueError, OverflowError):
        return None
    return min(max(at - time.time(), 0.0), _MAX_RETRY_AFTER_S)
