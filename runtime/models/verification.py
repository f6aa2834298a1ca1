"""The SHA-256 of a file while it is downloaded: each byte is hashed soon after it was written."""

import hashlib

from runtime.models.part_file import PartFile

_PIECE_BYTES = 1024 * 1024


def digest_of_arriving(part: PartFile) -> str | None:
    """Hash the bytes front to back, waiting for those that are missing.

    The digest in hexadecimal digits, "" if nothing is known to compare it with, or None where the
    download ended before the last byte. Raises OSError.
    """
    digest = hashlib.sha256() if part.origin.sha256 else None
    buffer = memoryview(bytearray(_PIECE_BYTES))
    position = 0
    while position < part.origin.size_bytes:
        available = part.wait_for(position)
        if not available:
            return None
        while digest and position < available:
            size = part.read_into(buffer[: available - position], position)
            digest.update(buffer[:size])
            position += size
        position = available
    return digest.hexdigest() if digest else ""
