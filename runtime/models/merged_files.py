"""The files of several manifests, each once: entries that agree are merged, others are an error.

Entries are of the same file if they have the same SHA-256 or a source in common.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import PurePosixPath
from typing import NamedTuple

from runtime.models.errors import ManifestError
from runtime.models.manifest import Manifest, ModelFile


def merged_files(manifests: Iterable[Manifest]) -> list[ModelFile]:
    """All files, in the order of their first entries.

    A merged file has what any of its entries says, and the sources of all of them. Raises
    ManifestError, which names the file and both manifests, for entries that contradict each other.
    """
    entries: dict[str, list[_Entry]] = defaultdict(list)
    for manifest in manifests:
        for file in manifest.files:
            known = entries[str(PurePosixPath(file.folder, file.name))]
            _check(_Entry(file, manifest), known)
            known.append(_Entry(file, manifest))
    return [reduce(_merged, (entry.file for entry in group)) for group in entries.values()]


class _Entry(NamedTuple):
    file: ModelFile
    manifest: Manifest


def _check(new: _Entry, known: Sequence[_Entry]) -> None:
    """Raises ManifestError for an entry that contradicts one of those of the same file."""
    for entry in known:
        if problem := _different_fact(entry.file, new.file):
            raise _error(entry, new, problem)
    if known and not any(_is_same_file(entry.file, new.file) for entry in known):
        problem = "without a common source, and not both have a sha256 that says that they are one"
        raise _error(known[0], new, problem)


def _different_fact(first: ModelFile, second: ModelFile) -> str:
    if None not in (first.sha256, second.sha256) and first.sha256 != second.sha256:
        return f"with sha256 {first.sha256} and {second.sha256}"
    if None not in (first.size_bytes, second.size_bytes) and first.size_bytes != second.size_bytes:
        return f"with size {first.size_bytes} and {second.size_bytes}"
    return ""


def _is_same_file(first: ModelFile, second: ModelFile) -> bool:
    has_same_hash = first.sha256 is not None and first.sha256 == second.sha256
    return has_same_hash or bool(set(first.sources) & set(second.sources))


def _error(first: _Entry, second: _Entry, problem: str) -> ManifestError:
    """Sources are not quoted: they may contain a password."""
    where = " and ".join(dict.fromkeys((first.manifest.shown, second.manifest.shown)))
    return ManifestError(
        f"{second.file.folder}/{second.file.name} has two entries in {where}, {problem}: correct"
        " one of them, or give one of the files another name"
    )


def _merged(first: ModelFile, second: ModelFile) -> ModelFile:
    return replace(
        first,
        sources=tuple(dict.fromkeys((*first.sources, *second.sources))),
        size_bytes=first.size_bytes or second.size_bytes,
        sha256=first.sha256 or second.sha256,
        expected_bytes=first.expected_bytes or second.expected_bytes,
        licence=first.licence or second.licence,
        needed_by=first.needed_by or second.needed_by,
    )
