"""What a user chose to install, kept in the installation, so that a later run goes on with it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from runtime.installation.command import DISK_HINT, InstallError

FILE = ".chosen.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The options of `install`. None: not chosen, so the project's default counts."""

    version: str | None = None
    source: str | None = None
    torch: str | None = None

    def or_else(self, other: "Choice") -> "Choice":
        """This choice, with that of `other` where this one has none.

        The source belongs to the version: it is of no use for another one.
        """
        return Choice(
            version=self.version or other.version,
            source=self.source or (None if self.version else other.source),
            torch=self.torch or other.torch,
        )


def read_choice(home: Path) -> Choice:
    """What was chosen before. Raises InstallError."""
    path = home / FILE
    try:
        return Choice(**json.loads(path.read_text()))
    except FileNotFoundError:
        return Choice()
    except OSError as error:
        raise InstallError(f"{error}. Try: {DISK_HINT}.") from error
    except (ValueError, TypeError) as error:
        raise InstallError(f"{path} cannot be read: {error}. Try: delete it.") from error


def write_choice(home: Path, choice: Choice) -> None:
    """Keep what was chosen. Raises InstallError."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        (home / FILE).write_text(f"{json.dumps(asdict(choice))}\n")
    except OSError as error:
        raise InstallError(f"{error}. Try: {DISK_HINT}.") from error
