"""Measures `import handler.app` in a fresh interpreter: this project's part of a cold start.

The first line is the budget. The second is the import alone, without the start of the interpreter.
The list below has the five slowest imports that this project's modules make, each with everything
that it imports, as reported by `-X importtime` (which itself slows imports down). A module that
several modules import counts for the first of them. The command fails if torch is imported: torch
belongs to ComfyUI's process.
"""

import subprocess
import sys

from benchmarks.report import print_table
from handler.settings import PROJECT

BUDGET_MS = 450.0
RUNS = 10
SHOWN = 5
_OURS = ("handler", "events", "runtime")
_TIMED = """
import time
began = time.perf_counter()
import handler.app
print((time.perf_counter() - began) * 1000)
"""
_LISTED = "import sys, handler.app; print(*sys.modules)"


def python(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)


def slowest_imports(importtime: str) -> list[tuple[float, str]]:
    """(milliseconds, module) of the imports that this project's modules make, the slowest first."""
    imports: list[tuple[float, str]] = []
    importers: list[str] = []
    # Each line is `import time: self | cumulative | name`. The line of an imported module precedes
    # its importer's line and is indented below it, so the lines are read from the end.
    for line in reversed(importtime.splitlines()):
        fields = line.removeprefix("import time:").split("|")
        if line.startswith("import time:") and fields[1].strip().isdigit():
            name = fields[2].strip()
            depth = (len(fields[2]) - len(fields[2].lstrip()) - 1) // 2
            importers[depth:] = [name]
            importer = importers[depth - 1] if depth else ""
            if _is_ours(importer) and not _is_ours(name):
                imports.append((int(fields[1]) / 1000, name))
    return sorted(imports, reverse=True)


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in _OURS


def main() -> None:
    python("-c", "import handler.app")  # compiles the files and reads them into the page cache
    times = [float(python("-c", _TIMED).stdout) for _ in range(RUNS)]
    modules = python("-c", _LISTED).stdout.split()
    assert "handler.app" in modules
    assert "torch" not in modules, "the handler imports torch"
    sides = {"budget": [BUDGET_MS], "import handler.app": times}
    print_table(sides, {"import handler.app": 1.0})
    print(f"\n{SHOWN} slowest imports of {len(modules)} modules, ms:")
    importtime = python("-X", "importtime", "-c", "import handler.app").stderr
    for ms, name in slowest_imports(importtime)[:SHOWN]:
        print(f"{ms:8.1f}  {name}")


if __name__ == "__main__":
    main()
