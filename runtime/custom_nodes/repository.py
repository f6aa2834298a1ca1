"""Git, as far as custom nodes need it: fetch a commit, hash its files, read what a folder holds."""

import hashlib
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from runtime.errors import LambdaComfyUIError

_OUTPUT_LINES_SHOWN = 5
_SUBMODULE = "160000"


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

    Raises RepositoryError.
    """
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
    _git(folder, "checkout", "--quiet", "--detach", source.commit)
    _git(folder, "submodule", "--quiet", "update", "--init", "--recursive")


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
    url = _git(folder, "remote", "get-url", "origin").decode().strip()
    commit = _git(folder, "rev-parse", "HEAD").decode().strip()
    return Source(_without_password(url), commit)


def changed_files(folder: Path) -> list[str]:
    """The tracked files that differ from the commit. Raises RepositoryError."""
    lines = _git(folder, "status", "--porcelain", "--untracked-files=no").decode().splitlines()
    return [line[3:] for line in lines]


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
        raise RepositoryError(f"`git {arguments[0]}` failed: " + "\n".join(lines))
    return done.stdout
