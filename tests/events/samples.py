"""The samples of events/samples: named <source>_<case>, each in the shape that AWS documents."""

import json
from typing import Any

from handler.settings import PROJECT

FOLDER = PROJECT / "events" / "samples"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


def sample(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())
