"""The log file of a worker: complete, bounded, and no reason to end."""

import subprocess
import sys
from pathlib import Path

import pytest

from handler.settings import PROJECT

pytestmark = pytest.mark.slow


def log_lines(folder: Path, program: str) -> "subprocess.CompletedProcess[str]":
    """Run statements in a process that logs to `worker.log` in the folder, 1000 bytes at most."""
    beginning = f"""
from pathlib import Path
from runtime import log
log._MAX_BYTES = 1000
log.log_to(Path({str(folder)!r}) / "worker.log")
"""
    return subprocess.run(
        [sys.executable, "-c", beginning + program],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_log_file_has_every_line_of_stderr_and_follows_those_of_before(tmp_path: Path) -> None:
    (tmp_path / "worker.log").write_text("before\n")

    process = log_lines(tmp_path, "log.log('one'); log.log('zwei: ä')")

    assert process.stderr == "one\nzwei: ä\n"
    assert (tmp_path / "worker.log").read_text() == "before\none\nzwei: ä\n"


def test_log_file_is_bounded_and_keeps_the_newest_lines(tmp_path: Path) -> None:
    log_lines(tmp_path, "for number in range(100): log.log(f'{number:099}')")

    files = sorted(tmp_path.iterdir())
    assert [path.name for path in files] == ["worker.log", "worker.log.1"]
    assert all(path.stat().st_size <= 1000 for path in files)
    assert files[0].read_text().endswith(f"{99:099}\n")


def test_error_that_ends_the_process_is_in_the_log_file(tmp_path: Path) -> None:
    process = log_lines(tmp_path, "raise LookupError('nothing there')")

    text = (tmp_path / "worker.log").read_text()
    assert process.returncode == 1
    assert process.stderr == text
    assert text.startswith("Traceback")
    assert text.endswith("LookupError: nothing there\n")


def test_log_file_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    program = """
log._files[0].stream.close()
log._files[0].stream = open("/dev/full", "w")
log.log("one"); log.log("two")
log._files.clear()
import os; os._exit(0)
"""
    process = log_lines(tmp_path, program)

    assert process.stderr == "one\ntwo\n"
    assert process.returncode == 0
