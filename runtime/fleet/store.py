"""What keeps a fleet between two starts of its router, and joins several routers.

Every change is conditional: a worker is stored only over the version that the caller has seen. So
when two routers give the last place of a worker away at once, one of them learns of the other.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Protocol

from handler.settings import Settings
from runtime.errors import LambdaComfyUIError
from runtime.fleet.registry import Benchmarked, Held, Measured, Status, Worker


class FleetStoreError(LambdaComfyUIError):
    """The store of the fleet cannot be used; the message says why."""


class FleetStore(Protocol):
    """Workers by their id. Threads may share it. Its methods raise what SQLite or boto3 raises."""

    def workers(self) -> Sequence[Worker]:
        """All workers."""

    def is_changed_elsewhere(self) -> bool:
        """Whether others may have changed something since the last call of this method."""

    def get(self, worker_id: int) -> Worker | None:
        """One worker."""

    def put(self, worker: Worker, version: int) -> bool:
        """Store it if the stored one has this version; 0: if there is none."""

    def remove(self, worker: Worker) -> bool:
        """Forget it if the stored one has its version."""

    def secret(self, name: str, make: Callable[[], str]) -> str:
        """The stored text of this name; if there is none, what `make` returns is stored first."""

    def publish(self, router: str, text: str, now: float) -> None:
        """Store what a router tells the others, over what it has told them before."""

    def published(self, since: float) -> Mapping[str, str]:
        """What each router has told last, if it did so since then."""

    def close(self) -> None:
        """Close the connection."""


def open_fleet_store(settings: Settings) -> FleetStore:
    """The table of JOBS_TABLE, else the file of JOBS_DB. Raises FleetStoreError."""
    try:
        if settings.jobs_table:
            from runtime.fleet.dynamodb_store import DynamoDBFleetStore  # noqa: PLC0415 - boto3

            return DynamoDBFleetStore(settings.jobs_table)
        from runtime.fleet.sqlite_store import SqliteFleetStore  # noqa: PLC0415

        return SqliteFleetStore(settings.jobs_db or settings.worker_dir / "router.sqlite")
    except Exception as error:
        place = settings.jobs_table or settings.jobs_db or settings.worker_dir
        text = f"cannot use {place} for the state of the fleet (JOBS_TABLE, JOBS_DB): {error}"
        raise FleetStoreError(text) from error


def to_json(worker: Worker) -> str:
    """The text of a worker in a store."""
    return json.dumps(asdict(worker), separators=(",", ":"))


def from_json(text: str) -> Worker:
    """The worker of a text that `to_json` has made."""
    values = json.loads(text)
    values["held"] = tuple(Held(**held) for held in values["held"])
    values["benchmarks"] = tuple(Benchmarked(**each) for each in values.get("benchmarks", []))
    values["measured"] = Measured(**values["measured"])
    values["status"] = Status(values["status"])
    return Worker(**values)


def next_version(worker: Worker) -> Worker:
    """The worker as it is stored over itself."""
    return replace(worker, version=worker.version + 1)
