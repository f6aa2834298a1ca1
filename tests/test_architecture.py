"""Which folder may import which: docs/architecture.md has the table, and the code follows it."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from handler.settings import PROJECT

FLOORS = {
    "events": {"events"},
    "handler": {"events", "handler"},
    "runtime": {"events", "handler", "runtime"},
    "infra": {"infra"},
}
ALL = "all of"


def documented_folders() -> dict[str, set[str]]:
    """What each folder of the table may import; "all of" includes the folders below it."""
    text = (PROJECT / "docs" / "architecture.md").read_text()
    table = text.partition("## Folders")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([\w/]+?)/?` \| .*? \| (.*) \|$", table, re.MULTILINE)
    folders = [folder for folder, _ in rows]
    return {
        folder: {
            other
            for name in re.findall(r"`([\w/]+?)/?`", cell)
            for other in folders
            if other == name or (ALL in cell and other.startswith(f"{name}/"))
        }
        for folder, cell in rows
    }


def folder_of(module: str) -> str | None:
    """The folder of a module of ours, as the table names it."""
    parts = module.split(".")
    if parts[0] not in FLOORS:
        return None
    folders = [part for part in parts if "." not in part]
    while not PROJECT.joinpath(*folders).is_dir():
        folders.pop()
    return "/".join(folders)


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports, and each name that it imports from one, as it may be one."""
    for statement in ast.walk(ast.parse(path.read_text())):
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            yield statement.module
            yield from (f"{statement.module}.{alias.name}" for alias in statement.names)


def modules_in(folder: str) -> list[Path]:
    return sorted((PROJECT / folder).glob("*.py"))


def test_every_folder_is_in_the_table() -> None:
    packages = {
        init.parent.relative_to(PROJECT).as_posix()
        for floor in FLOORS
        for init in (PROJECT / floor).rglob("__init__.py")
    }

    assert packages == documented_folders().keys()


@pytest.mark.parametrize("folder", documented_folders())
def test_folder_imports_only_what_the_table_allows(folder: str) -> None:
    allowed = documented_folders()[folder] | {folder, None}

    strangers = {
        f"{path.relative_to(PROJECT)} imports {module}"
        for path in modules_in(folder)
        for module in imports(path)
        # `from handler import app` names the package and the module: the module counts.
        if folder_of(module) not in allowed and not is_package_of_allowed(module, path)
    }

    assert strangers == set()


def is_package_of_allowed(module: str, importer: Path) -> bool:
    """Whether `module` is a package that the file imports only for a module of another folder."""
    inner = {name for name in imports(importer) if name.startswith(f"{module}.")}
    return bool(inner) and any(folder_of(name) != folder_of(module) for name in inner)


@pytest.mark.parametrize("floor", FLOORS)
def test_floors_import_one_way(floor: str) -> None:
    strangers = {
        f"{path.relative_to(PROJECT)} imports {module}"
        for path in (PROJECT / floor).rglob("*.py")
        for module in imports(path)
        if module.partition(".")[0] in {*FLOORS, "tests", "benchmarks"} - FLOORS[floor]
    }

    assert strangers == set()


def test_every_module_that_a_docstring_or_a_guide_names_exists() -> None:
    module = re.compile(rf"(?<![\w/])(?:{'|'.join([*FLOORS, 'tests', 'benchmarks'])})/[\w/]+\.py\b")
    texts = [*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md")]
    texts += [path for floor in FLOORS for path in (PROJECT / floor).rglob("*.py")]

    missing = {
        f"{path.relative_to(PROJECT)}: {name}"
        for path in texts
        for name in module.findall(path.read_text())
        if not (PROJECT / name).exists()
    }

    # The guide's example, which its reader writes.
    assert missing == {"docs/extending.md: events/kinesis.py"}


def test_handler_process_imports_nothing_heavy_at_start() -> None:
    heavy = {"torch", "boto3", "rich", "starlette", "mangum"}
    code = f"import sys, handler.app; print({heavy!r} & set(sys.modules))"

    process = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )

    assert process.stdout.strip() == "set()"
