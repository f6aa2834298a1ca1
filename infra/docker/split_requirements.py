"""Writes what each environment of the image needs from pyproject.toml into files of its own.

The image's large layers depend on these files. A new version of the project, or another change of
pyproject.toml, does not build those layers again.
"""

import json
import sys
import tomllib
from pathlib import Path

# Of the extra `local`: Lambda's runtime client, and the server of the HTTP API of `serve`.
OF_LOCAL = ("awslambdaric", "uvicorn")


def main(pyproject: Path, into: Path) -> None:
    """Write `handler.txt`, for pip, and `comfyui/pyproject.toml`, for the installer."""
    project = tomllib.loads(pyproject.read_text())["project"]
    extras = project["optional-dependencies"]
    handler = [
        *project["dependencies"],
        *(pin for pin in extras["local"] if pin.startswith(OF_LOCAL)),
    ]
    (into / "comfyui").mkdir(parents=True)
    (into / "handler.txt").write_text("".join(f"{pin}\n" for pin in handler))
    (into / "comfyui" / "pyproject.toml").write_text(
        # An array of strings is the same in JSON and in TOML.
        f"[project.optional-dependencies]\ncomfyui = {json.dumps(extras['comfyui'], indent=4)}\n"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
