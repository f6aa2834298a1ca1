"""The tree of errors in runtime/errors.py, against the classes in runtime/."""

import ast
import importlib
import re
from collections.abc import Iterator

from handler.settings import PROJECT
from runtime import errors
from runtime.errors import LambdaComfyUIError


def error_classes() -> Iterator[type[Exception]]:
    """Every exception class that is defined in runtime/."""
    for path in sorted((PROJECT / "runtime").rglob("*.py")):
        tree = ast.parse(path.read_text())
        classes = [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        # The files that are programs, and not modules, have no class.
        # What runs inside ComfyUI's process cannot import the root.
        if not classes or path.name.startswith("inside_"):
            continue
        module = importlib.import_module(".".join(path.relative_to(PROJECT).with_suffix("").parts))
        for class_name in classes:
            defined = getattr(module, class_name, None)
            if isinstance(defined, type) and issubclass(defined, Exception):
                yield defined


def drawn_tree() -> dict[str, str]:
    """Class name -> name of its parent, as the docstring of runtime/errors.py draws it."""
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if node := re.match(r"    ((?:│   )*)(?:[├└]── )?(\w+)", line):
            depth = line.index(node[2]) // 4 - 1
            path = [*path[:depth], node[2]]
            parents[node[2]] = path[-2] if depth else "Exception"
    return parents


def test_every_error_is_in_the_tree_of_the_docstring() -> None:
    assert drawn_tree() == {
        each.__name__: each.__mro__[1].__name__ for each in set(error_classes())
    }


def test_every_error_has_the_root() -> None:
    assert all(issubclass(each, LambdaComfyUIError) for each in error_classes())
