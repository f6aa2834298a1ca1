"""`POST /upload/image`: stores an input file as ComfyUI's own route does.

https://docs.comfy.org/development/comfyui-server/comms_routes. A workflow can then name the file.
"""

import errno
import os
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from anyio import to_thread
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from handler.api import request_body
from handler.api.dispatcher import NotOffered
from handler.api.json_answer import JsonAnswer, message

_CHUNK_BYTES = 1024 * 1024
_MAX_NAME = 200
_SUBFOLDER = "subfolder: expected a folder below ComfyUI's input folder"
# A name on the way is too long, or is that of a file.
_BAD_NAME = frozenset({errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.ELOOP})
_FORM = "send a form with a file in the field 'image'"


class _BadUpload(ValueError):
    """The form is wrong; the message says what is expected."""


def routes() -> Sequence[BaseRoute]:
    return [Route("/upload/image", upload_image, methods=["POST"])]


async def upload_image(request: Request) -> Response:
    """Store the file, and answer with `{name, subfolder, type}`."""
    context = request.app.state.context
    folder = context.input_folder
    if folder is None:
        raise NotOffered(
            "this front door has no disk that ComfyUI reads; give the input as a URL or data: URI"
        )
    limited = request_body.limited(request, context.max_body_bytes)
    try:
        async with limited.form(max_files=1, max_fields=10) as form:
            image = form.get("image")
            if not isinstance(image, UploadFile):
                return message(400, _FORM)
            kind = str(form.get("type") or "input")
            if kind != "input":
                return message(400, "type: expected 'input'")
            subfolder = str(form.get("subfolder") or "")
            is_replaced = str(form.get("overwrite") or "").lower() in ("true", "1")
            try:
                name = await to_thread.run_sync(store_upload, folder, image, subfolder, is_replaced)
            except _BadUpload as error:
                return message(400, str(error))
    except (MultiPartException, AssertionError):
        return message(400, _FORM)
    return JsonAnswer({"name": name, "subfolder": subfolder, "type": kind})


def store_upload(folder: Path, image: UploadFile, subfolder: str, is_replaced: bool) -> str:
    """Store the file below `folder`; the name that it gets.

    A file with the same content keeps its name, another one gets a number. Raises _BadUpload,
    OSError.
    """
    name = Path(image.filename or "").name
    if not name or name in (".", "..") or len(name.encode()) > _MAX_NAME or "\0" in name:
        raise _BadUpload("image: expected a file name of 200 bytes at most")
    target_folder = _make_folder(folder, subfolder)
    if (target_folder / name).is_dir():
        raise _BadUpload("image: there is a folder with this name; choose another name")
    handle, part = tempfile.mkstemp(dir=target_folder, prefix=".upload-", suffix=".part")
    digest = sha256()
    try:
        with os.fdopen(handle, "wb") as file:
            while chunk := image.file.read(_CHUNK_BYTES):
                digest.update(chunk)
                file.write(chunk)
        os.chmod(part, 0o644)
        target = target_folder / name
        number = 1
        while not is_replaced and not _link(part, target):
            if _digest_of(target) == digest.digest():
                break
            target = target_folder / f"{Path(name).stem} ({number}){Path(name).suffix}"
            number += 1
        if is_replaced:
            os.replace(part, target)
    finally:
        Path(part).unlink(missing_ok=True)
    return target.name


def _make_folder(folder: Path, subfolder: str) -> Path:
    """The subfolder, which is made if it is missing. Raises _BadUpload, OSError."""
    if "\0" in subfolder:
        raise _BadUpload(_SUBFOLDER)
    try:
        target_folder = (folder / subfolder).resolve()
        if not target_folder.is_relative_to(folder.resolve()):
            raise _BadUpload(_SUBFOLDER)
        target_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in _BAD_NAME:
            raise _BadUpload(_SUBFOLDER) from None
        raise
    return target_folder


def _link(part: str, target: Path) -> bool:
    """Give the file its name; False if there is one with that name."""
    try:
        os.link(part, target)
    except FileExistsError:
        return False
    return True


def _digest_of(path: Path) -> bytes:
    digest = sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.digest()
