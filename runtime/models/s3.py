"""Buckets with models: a client for them, and the files below a prefix.

The keys are those of S3_*, else what boto3 finds: AWS_*, a profile, the machine's role.
"""

from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from handler.settings import Settings
from runtime.models.errors import AccessDeniedError, ManifestError, SourceMissingError
from runtime.models.manifest import Manifest, ModelFile


def s3_client(settings: Settings, region: str | None = None) -> Any:
    """A client of boto3; one that does not sign where there are no keys. Raises BotoCoreError."""
    # boto3 takes a quarter of a second to import, and only this kind of source needs it.
    import boto3  # noqa: PLC0415
    from botocore import UNSIGNED  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415

    session = boto3.session.Session(
        aws_access_key_id=settings.s3_access_key_id or None,
        aws_secret_access_key=settings.s3_secret_access_key or None,
        region_name=region or settings.s3_region or None,
    )
    signature = "s3v4" if session.get_credentials() else UNSIGNED
    return session.client(
        "s3",
        config=Config(signature_version=signature),
        endpoint_url=settings.s3_endpoint_url or None,
    )


def manifest_of_prefix(uri: str, settings: Settings) -> Manifest:
    """All files below `s3://bucket/prefix/`: the first folder is the kind of model.

    Raises ManifestError, SourceMissingError or AccessDeniedError.
    """
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    parts = urlsplit(uri)
    if parts.scheme != "s3" or not parts.netloc:
        raise ManifestError(f"MODELS_S3_URI is {uri!r}, expected s3://bucket/prefix/")
    folder = parts.path.strip("/")
    prefix = f"{folder}/" if folder else ""
    try:
        pages = s3_client(settings).get_paginator("list_objects_v2")
        found = [
            item
            for page in pages.paginate(Bucket=parts.netloc, Prefix=prefix)
            for item in page.get("Contents", [])
            # Empty objects say which folders there are: those of the S3 console, and the files
            # `put_checkpoints_here` and others of ComfyUI's own `models`.
            if item["Size"]
        ]
    except ClientError as error:
        code = error.response["Error"]["Code"]
        kind = SourceMissingError if code == "NoSuchBucket" else AccessDeniedError
        raise kind(f"{uri}: {code}; check MODELS_S3_URI and the keys of the bucket") from error
    except BotoCoreError as error:
        raise AccessDeniedError(f"{uri}: {error}") from error
    if not found:
        raise SourceMissingError(f"there is nothing under {uri}: check MODELS_S3_URI")
    files = [_file(parts.netloc, item["Key"], prefix, item["Size"]) for item in found]
    return Manifest(name=uri, files=tuple(files))


def _file(bucket: str, key: str, prefix: str, size: int) -> ModelFile:
    path = PurePosixPath(key.removeprefix(prefix))
    if path.is_absolute() or ".." in path.parts:
        raise ManifestError(f"the key {key!r} leads out of the folder of models")
    folder, *rest = path.parts
    return ModelFile(
        name="/".join(rest) or folder,
        folder=folder if rest else ".",
        sources=(f"s3://{bucket}/{key}",),
        size_bytes=size,
    )
