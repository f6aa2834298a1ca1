"""What `import handler.app` costs in a fresh interpreter: the part of a cold start that is ours.

The first line is the budget, the second the import alone, without the start of the interpreter.
Below it are the five costliest imports that our own modules make, each with all that it pulls in,
as `-X importtime` saw them (which itself makes imports slower). A module that several need counts
for the first of them. Ends with an error if torch is imported: it belongs to ComfyUI's process.
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


def costliest_imports(importtime: str) -> list[tuple[float, str]]:
    """(milliseconds, module) of the imports that our own modules make, the costliest first."""
    found: list[tuple[float, str]] = []
    importers: list[str] = []
    # Each line is `import time: self | cumulative | name`, indented below the importer's line,
    # which comes after it: read from the end, it is a tree from the root.
    for line in reversed(importtime.splitlines()):
        fields = line.removeprefix("import time:").split("|")
        if line.startswith("import time:") and fields[1].strip().isdigit():
            name = fields[2].strip()
            depth = (len(fields[2]) - len(fields[2].lstrip()) - 1) // 2
            importers[depth:] = [name]
            importer = importers[depth - 1] if depth else ""
            if _is_ours(importer) and not _is_ours(name):
                found.append((int(fields[1]) / 1000, name))
    return sorted(found, reverse=True)


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in _OURS


def main() -> None:
    python("-c", "import handler.app")  # the files are compiled, and in the page cache
    times = [float(python("-c", _TIMED).stdout) for _ in range(RUNS)]
    modules = python("-c", _LISTED).stdout.split()
    assert "handler.app" in modules
    assert "torch" not in modules, "the handler imports torch"
    sides = {"budget": [BUDGET_MS], "import handler.app": times}
    print_table(sides, {"import handler.app": 1.0})
    print(f"\n{SHOWN} costliest imports of {len(modules)} modules, ms:")
    importtime = python("-X", "importtime", "-c", "import handler.app").stderr
    for ms, name in costliest_imports(importtime)[:SHOWN]:
        print(f"{ms:8.1f}  {name}")


if __name__ == "__main__":
    main()
