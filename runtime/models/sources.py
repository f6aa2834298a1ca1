"""From a source of a manifest to the URL whose ranges are read: `s3://`, `hf://`, `https://`.

Tokens come from the environment: HF_TOKEN, CIVITAI_TOKEN, S3_* or what boto3 finds. They go to
their own host alone, never along with a redirect, and are in no message.

`hf://OWNER/REPOSITORY[@REVISION]/PATH` is the Hub's resolve URL; its redirect leads to a store
that answers ranges: https://huggingface.co/docs/hub/models-downloading. HF_ENDPOINT names a mirror.
S3 is read by a pre-signed URL: https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html
"""

import base64
import http.client
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urljoin, urlsplit

from handler.outbound import Allowed
from handler.settings import Settings
from runtime.models.answers import check_status
from runtime.models.errors import (
    AccessDeniedError,
    ServerFailedError,
    SourceMissingError,
    WrongSizeError,
)
from runtime.models.foreign_errors import network_errors
from runtime.models.http_connection import HttpConnection
from runtime.models.s3 import s3_client

SCHEMES = ("s3", "hf", "https", "http")
_HUB = "https://huggingface.co"
_MAX_REDIRECTS = 5
# Of a body that nobody needs: it is read so that the connection can be used again.
_MAX_UNUSED_BYTES = 64 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SIGNED_FOR_S = 3600
_TOTAL = re.compile(r"bytes \d+-\d+/(\d+)")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A file at a source, as it is now. `url` may contain a signature: it is never shown."""

    source: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    size_bytes: int
    version: str | None
    """The ETag, else the date of Last-Modified, as the server spells it; None where it has none."""
    has_ranges: bool
    sha256: str | None
    """As the Hub states it, else None."""
    allowed: Allowed | None
    opened_at: float


class Sources:
    """Opens sources with the tokens of an environment. Any thread may use it."""

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        self._settings = settings
        self._hub = environ.get("HF_ENDPOINT", "").rstrip("/") or _HUB
        hf_token = environ.get("HF_TOKEN", "").strip()
        self._tokens = {
            "{0.scheme}://{0.netloc}".format(urlsplit(self._hub)): hf_token,
            _HUB: hf_token,
            "https://civitai.com": environ.get("CIVITAI_TOKEN", "").strip(),
        }
        self._regions: dict[str, str] = {}

    def open(
        self, source: str, connection: HttpConnection, allowed: Allowed | None = None
    ) -> Remote:
        """Ask the source for its first byte. Raises DownloadError.

        `allowed` restricts the addresses of a caller's URL, which gets no token of ours.
        """
        with network_errors(shown(source)):
            if source.startswith("s3://"):
                return self._open_s3(source, connection)
            url = self._hub_url(source) if source.startswith("hf://") else source
            return self._open_url(source, url, connection, allowed)

    def _hub_url(self, source: str) -> str:
        match = re.fullmatch(r"hf://([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)", source)
        if not match:
            raise SourceMissingError(
                f"{source}: expected hf://OWNER/REPOSITORY/PATH, with @REVISION after the"
                " repository if it is not main"
            )
        repository, revision, path = match.groups()
        return f"{self._hub}/{repository}/resolve/{quote(revision or 'main')}/{quote(path)}"

    def _open_url(
        self, source: str, url: str, connection: HttpConnection, allowed: Allowed | None
    ) -> Remote:
        headers, linked = {}, None
        if allowed is None:
            headers = self._authorization(url)
        for _ in range(_MAX_REDIRECTS + 1):
            answer = _first_byte(url, headers, connection, allowed)
            linked = linked or _linked_sha256(answer)
            if answer.status not in _REDIRECTS:
                return _remote(source, url, headers, answer, connection, linked, allowed)
            connection.read_beginning(_MAX_UNUSED_BYTES)
            to = urljoin(url, answer.headers.get("Location", ""))
            if urlsplit(to).scheme not in ("http", "https"):
                raise SourceMissingError(f"{shown(source)} leads to a URL that is not http(s)")
            if urlsplit(to)[:2] != urlsplit(url)[:2]:
                headers = {}
            url = to
        raise SourceMissingError(f"{shown(source)} leads through more than {_MAX_REDIRECTS} URLs")

    def _authorization(self, url: str) -> dict[str, str]:
        parts = urlsplit(url)
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
        token = self._tokens.get(f"{parts.scheme}://{parts.netloc}")
        return {"Authorization": f"Bearer {token}"} if token else {}

    def _open_s3(self, source: str, connection: HttpConnection) -> Remote:
        bucket = urlsplit(source).netloc
        url = self._presign(source, self._regions.get(bucket))
        answer = _first_byte(url, {}, connection, None)
        region = answer.headers.get("x-amz-bucket-region")
        if answer.status in (301, 307, 400) and region and bucket not in self._regions:
            connection.read_beginning(_MAX_UNUSED_BYTES)
            self._regions[bucket] = region
            url = self._presign(source, region)
            answer = _first_byte(url, {}, connection, None)
        return _remote(source, url, {}, answer, connection, None, None)

    def _presign(self, source: str, region: str | None) -> str:
        from botocore.exceptions import BotoCoreError  # noqa: PLC0415

        bucket, _, key = source.removeprefix("s3://").partition("/")
        try:
            url: str = s3_client(self._settings, region).generate_presigned_url(
                "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=_SIGNED_FOR_S
            )
        except (BotoCoreError, ValueError) as error:
            raise AccessDeniedError(
                f"{source}: {error}; check S3_ENDPOINT_URL, S3_REGION"
            ) from None
        return url


def shown(source: str) -> str:
    """A source without user, password and query, which may be secret."""
    try:
        parts = urlsplit(source)
    except ValueError:
        return "a URL that cannot be read"
    if parts.scheme not in ("http", "https"):
        return source
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def version_of(answer: http.client.HTTPResponse) -> str | None:
    """What changes when the file is replaced: see Remote."""
    version = answer.headers.get("ETag", "") or answer.headers.get("Last-Modified", "")
    return version[:200] or None


def _first_byte(
    url: str, headers: Mapping[str, str], connection: HttpConnection, allowed: Allowed | None
) -> http.client.HTTPResponse:
    return connection.get(url, {**headers, "Range": "bytes=0-0"}, allowed)


def _linked_sha256(answer: http.client.HTTPResponse) -> str | None:
    """The Hub's ETag of a large file is its SHA-256; it stands in the answer that redirects.

    https://huggingface.co/docs/huggingface_hub/package_reference/file_download
    """
    etag = answer.headers.get("X-Linked-ETag", "").strip('"')
    return etag if _SHA256.fullmatch(etag) else None


def _remote(
    source: str,
    url: str,
    headers: Mapping[str, str],
    answer: http.client.HTTPResponse,
    connection: HttpConnection,
    sha256: str | None,
    allowed: Allowed | None,
) -> Remote:
    has_ranges = answer.status == 206
    check_status(answer, connection, shown(source))
    length = answer.headers.get("Content-Length", "")
    if has_ranges:
        # The length is that of the first byte. The total may be unknown: `bytes 0-0/*`.
        total = _TOTAL.fullmatch(answer.headers.get("Content-Range", ""))
        length = total[1] if total else ""
        connection.read_beginning(_MAX_UNUSED_BYTES)
    if not length.isdecimal():
        raise ServerFailedError(f"{shown(source)} does not say how large the file is")
    if not int(length):
        raise WrongSizeError(f"{shown(source)}: the file is empty")
    return Remote(
        source=source,
        url=url,
        headers=headers,
        size_bytes=int(length),
        version=version_of(answer),
        has_ranges=has_ranges,
        sha256=sha256,
        allowed=allowed,
        opened_at=time.monotonic(),
    )
