"""Who may know whom: `runtime -> handler -> events`, and nobody imports `infra`."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from handler.settings import PROJECT

MAY_IMPORT: dict[str, set[str]] = {
    "events": set(),
    "handler": {"events"},
    "runtime": {"events", "handler"},
    "infra": set(),
}
OURS = {*MAY_IMPORT, "tests", "benchmarks"}


def imported(path: Path) -> Iterator[str]:
    for found in ast.walk(ast.parse(path.read_text())):
        if isinstance(found, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in found.names)
        elif isinstance(found, ast.ImportFrom):
            yield (found.module or "").partition(".")[0]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_follow_the_arrows(package: str) -> None:
    allowed = MAY_IMPORT[package] | {package}

    strangers = {
        f"{path.relative_to(PROJECT)} imports {name}"
        for path in (PROJECT / package).rglob("*.py")
        for name in imported(path)
        if name in OURS - allowed
    }

    assert strangers == set()


def test_handler_process_imports_neither_torch_nor_boto3_at_start() -> None:
    code = "import sys, handler.app; print({'torch', 'boto3', 'rich'} & set(sys.modules))"

    found = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )

    assert found.stdout.strip() == "set()"
