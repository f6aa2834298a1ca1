"""Copies the weights under an S3 prefix to MODELS_DIR: `python -m infra.fetch_models`.

Does nothing without MODELS_S3_URI. The image's extension runs it before the worker starts, so no
job reads a model that is only partly copied.
"""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# Free space that is left for results, inputs and ComfyUI's own files.
RESERVE_BYTES = 512 * 1024**2
PARALLEL_FILES = 4


class FetchError(Exception):
    """The weights cannot be copied; the message has the reason and the fix."""


@dataclass(frozen=True, slots=True)
class Weight:
    """One object under the prefix, and the file that it is copied to."""

    key: str
    size_bytes: int
    path: Path

    def is_there(self) -> bool:
        return self.path.is_file() and self.path.stat().st_size == self.size_bytes


def fetch(uri: str, target: Path, s3: Any) -> list[Weight]:
    """Copy what `target` lacks of the prefix; return what was copied. Raises FetchError.

    `uri` is `s3://bucket/prefix/`, `s3` a boto3 client.
    """
    bucket, prefix = _parse(uri)
    weights = list(_listed(s3, bucket, prefix, target))
    if not weights:
        raise FetchError(f"there is nothing under {uri}: check ModelsBucket and ModelsPrefix")
    missing = [weight for weight in weights if not weight.is_there()]
    target.mkdir(parents=True, exist_ok=True)
    _check_space(missing, target)
    with ThreadPoolExecutor(PARALLEL_FILES, thread_name_prefix="fetch") as pool:
        list(pool.map(lambda weight: _copy(s3, bucket, weight), missing))
    return missing


def main() -> int:
    """Copy what MODELS_S3_URI names to MODELS_DIR; return the exit status."""
    uri = os.environ.get("MODELS_S3_URI", "").strip()
    if not uri:
        return 0
    # The import takes a quarter of a second, and only this kind of storage needs it.
    import boto3  # noqa: PLC0415

    began = time.monotonic()
    try:
        target = Path(os.environ["MODELS_DIR"])
        copied = fetch(uri, target, boto3.session.Session().client("s3"))
    except Exception as error:
        print(f"models: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1
    size_gb = sum(weight.size_bytes for weight in copied) / 1e9
    seconds = time.monotonic() - began
    print(f"models: {len(copied)} files, {size_gb:.1f} GB, in {seconds:.0f} s", file=sys.stderr)
    return 0


def _parse(uri: str) -> tuple[str, str]:
    parts = urlsplit(uri)
    if parts.scheme != "s3" or not parts.netloc:
        raise FetchError(f"MODELS_S3_URI is {uri!r}, expected s3://bucket/prefix/")
    prefix = parts.path.strip("/")
    return parts.netloc, f"{prefix}/" if prefix else ""


def _listed(s3: Any, bucket: str, prefix: str, target: Path) -> Iterator[Weight]:
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    for item in (item for page in pages for item in page.get("Contents", [])):
        key: str = item["Key"]
        if key.endswith("/"):
            continue  # the S3 console makes empty objects to show folders
        path = (target / key.removeprefix(prefix)).resolve()
        if not path.is_relative_to(target.resolve()):
            raise FetchError(f"the key {key!r} leads out of {target}")
        yield Weight(key, item["Size"], path)


def _check_space(weights: list[Weight], target: Path) -> None:
    needed = sum(weight.size_bytes for weight in weights)
    free = shutil.disk_usage(target).free - RESERVE_BYTES
    if needed > free:
        raise FetchError(
            f"{needed / 1e9:.1f} GB of weights do not fit into the {max(free, 0) / 1e9:.1f} GB that"
            f" are free for them in {target}: raise TmpMiB, or use ModelStorage efs or s3files"
        )


def _copy(s3: Any, bucket: str, weight: Weight) -> None:
    weight.path.parent.mkdir(parents=True, exist_ok=True)
    part = weight.path.with_name(f"{weight.path.name}.part")
    s3.download_file(bucket, weight.key, str(part))
    part.replace(weight.path)


if __name__ == "__main__":
    sys.exit(main())
