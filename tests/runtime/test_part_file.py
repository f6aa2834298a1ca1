"""What NAME.part.state says is used only if it can be true."""

from pathlib import Path

import pytest

from runtime.models.part_file import BLOCK_BYTES, Origin, PartFile, done_bytes_on_disk
from runtime.models.parts import Parts

SIZE = 3 * BLOCK_BYTES
ORIGIN = Origin(size_bytes=SIZE, sha256=None, source="https://example.com/a", version='"1"')
WHOLE = [(0, SIZE)]
_HEADER_BYTES = 4096


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    """Of a file whose first block is there."""
    parts = Parts(tmp_path / "a.safetensors")
    part = PartFile(parts, ORIGIN)
    part.write(memoryview(bytes(BLOCK_BYTES)), 0)
    part.close()
    return parts


def missing(parts: Parts) -> list[tuple[int, int]]:
    part = PartFile(parts, ORIGIN)
    part.close()
    return part.missing()


def test_block_that_is_there_is_not_missing(parts: Parts) -> None:
    assert done_bytes_on_disk(parts) == BLOCK_BYTES
    assert missing(parts) == [(BLOCK_BYTES, SIZE)]


@pytest.mark.parametrize(
    "header", [b'"text"', b"5", b"null", b"[]", b"{}", b'{"size_bytes": "3"}', b"[" * _HEADER_BYTES]
)
def test_state_with_a_header_of_another_shape_is_no_state(header: bytes, parts: Parts) -> None:
    marks = parts.state.read_bytes()[_HEADER_BYTES:]
    parts.state.write_bytes(header.ljust(_HEADER_BYTES) + marks)

    assert done_bytes_on_disk(parts) == 0
    assert missing(parts) == WHOLE


def test_state_with_a_mark_that_nobody_makes_is_no_state(parts: Parts) -> None:
    parts.state.write_bytes(parts.state.read_bytes()[:-1] + b"\2")

    assert done_bytes_on_disk(parts) == 0
    assert missing(parts) == WHOLE


def test_state_whose_part_was_deleted_is_no_state(parts: Parts) -> None:
    parts.part.unlink()

    assert done_bytes_on_disk(parts) == 0
    assert missing(parts) == WHOLE
