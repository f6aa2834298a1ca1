"""Git, as far as custom nodes need it: fetch a commit, hash its files, read what a folder holds."""

import hashlib
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from runtime.errors import LambdaComfyUIError

_OUTPUT_LINES_SHOWN = 5
_SUBMODULE = "160000"
# It names the commit of a move that has begun, and not ended.
_MOVING = "refs/lambda-comfyui/moving"
# The user, and the password, of a URL.
_SECRET = re.compile(r"(?<=://)[^/\s]*@")


class RepositoryError(LambdaComfyUIError):
    """Git could not do something; the message has the end of its output."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where the files of a folder come from: the URL of its remote `origin`, and its commit."""

    repository: str
    commit: str


def fetch(source: Source, into: Path) -> None:
    """Check a commit out into the new folder `into`, with its submodules.

    The remote's other commits are fetched only if it does not give this one alone. Raises
    RepositoryError.
    """
    _git(None, "init", "--quiet", "--", str(into))
    _git(into, "remote", "add", "--", "origin", source.repository)
    move_to(source, into)


def move_to(source: Source, folder: Path) -> None:
    """Check another commit out in a folder, which keeps its untracked files.

    A password in the URL of the remote stays there. Raises RepositoryError.
    """
    if _without_password(_remote_url(folder)) != source.repository:
        _git(folder, "remote", "set-url", "--", "origin", source.repository)
    try:
        _git(folder, "fetch", "--quiet", "--depth", "1", "origin", source.commit)
    except RepositoryError:
        # Some servers give what a branch or a tag names, and nothing else.
        _git(folder, "fetch", "--quiet", "--tags", "origin", "+refs/heads/*:refs/remotes/origin/*")
    try:
        _git(folder, "cat-file", "-e", f"{source.commit}^{{commit}}")
    except RepositoryError as error:
        raise RepositoryError(
            f"{source.repository} has no commit {source.commit}; was it pushed?"
        ) from error
    _git(folder, "update-ref", _MOVING, source.commit)
    _git(folder, "checkout", "--quiet", "--detach", source.commit)
    _git(folder, "submodule", "--quiet", "update", "--init", "--recursive")
    _git(folder, "update-ref", "-d", _MOVING)


def is_moving(folder: Path) -> bool:
    """Whether a move of this folder was killed: its submodules may be those of another commit.

    Raises RepositoryError.
    """
    return bool(_git(folder, "for-each-ref", _MOVING))


def tree_sha256(folder: Path) -> str:
    """The SHA-256 of the files of the commit that is checked out.

    It is that of a line `MODE SHA256 PATH` and a NUL for each file, in git's order; of a submodule,
    the id of its commit. Unlike the id of a commit, it does not depend on SHA-1. Raises
    RepositoryError.
    """
    digest = hashlib.sha256()
    entries = _git(folder, "ls-tree", "-r", "-z", "HEAD").split(b"\0")[:-1]
    with subprocess.Popen(
        ["git", "-C", folder, "cat-file", "--batch"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as objects:
        for entry in entries:
            description, _, path = entry.partition(b"\t")
            mode, _, content = description.decode().split(" ")
            if mode != _SUBMODULE:
                content = hashlib.sha256(_blob(objects, content)).hexdigest()
            digest.update(f"{mode} {content} ".encode() + path + b"\0")
    return digest.hexdigest()


def source_of(folder: Path) -> Source:
    """What is checked out in a folder. A password in the URL is left out.

    Raises RepositoryError, also for a folder that is not the root of a clone.
    """
    # git would find a repository around the folder: that of ComfyUI.
    if not (folder / ".git").exists():
        raise RepositoryError("it is not a git repository")
    commit = _git(folder, "rev-parse", "HEAD").decode().strip()
    return Source(_without_password(_remote_url(folder)), commit)


def changed_files(folder: Path, *, with_submodules: bool = True) -> list[str]:
    """The tracked files that differ from the commit.

    A submodule at another commit is one of them. Without `with_submodules`, it is not, but its own
    changed files are. Raises RepositoryError.
    """
    options = ("--porcelain=v2", "--untracked-files=no", "--no-renames", "-z")
    changed = []
    for entry in _git(folder, "status", *options).decode(errors="replace").split("\0")[:-1]:
        # https://git-scm.com/docs/git-status: `u` has two object ids more than `1`.
        fields = entry.split(" ", 8 if entry.startswith("1") else 10)
        path, is_submodule = fields[-1], fields[2].startswith("S")
        if is_submodule and not with_submodules:
            inner = changed_files(folder / path, with_submodules=False)
            changed += [f"{path}/{each}" for each in inner]
        else:
            changed.append(path)
    return changed


def _remote_url(folder: Path) -> str:
    return _git(folder, "remote", "get-url", "origin").decode().strip()


def _blob(objects: "subprocess.Popen[bytes]", object_id: str) -> bytes:
    """One object from `git cat-file --batch`: a line `ID TYPE SIZE`, its bytes, a newline."""
    assert objects.stdin
    assert objects.stdout
    objects.stdin.write(f"{object_id}\n".encode())
    objects.stdin.flush()
    fields = objects.stdout.readline().split()
    if len(fields) != 3:
        raise RepositoryError(f"the file with the id {object_id} is missing")
    return objects.stdout.read(int(fields[2]) + 1)[:-1]


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    if parts.scheme in ("http", "https"):
        # The user may be a token.
        return urlunsplit(parts._replace(netloc=host))
    if parts.scheme == "ssh" and ":" in user:
        return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}@{host}"))
    return url


def _git(folder: Path | None, *arguments: str) -> bytes:
    place = ["-C", str(folder)] if folder else []
    try:
        done = subprocess.run(
            ["git", *place, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            # Fail instead of asking for a password.
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"},
            check=False,
        )
    except OSError as error:
        raise RepositoryError(f"cannot run git: {error.strerror}; install it") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").rstrip().splitlines()[-_OUTPUT_LINES_SHOWN:]
        # git itself names the user of a URL, which may be a token.
        output = _SECRET.sub("", "\n".join(lines))
        raise RepositoryError(f"`git {arguments[0]}` failed: {output}")
    return done.stdout
