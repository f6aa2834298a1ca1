"""What a job store promises: the same tests on SQLite and on DynamoDB (moto's server).

Times are numbers that the tests choose. What handlers make of a store is in test_jobs.py.
"""

import itertools
import json
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from handler.jobs.record import JobRecord, Lease, Status, UnreadableRecord, to_item
from handler.jobs.store import Store, open_store
from handler.settings import PROJECT, Settings
from tests.handler.job_tables import DynamoDBTable, JobTable, SqliteTable, lease_until

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

NOW = 1_800_000_000.0
RESPONSE = {"id": "a", "status": "completed", "output": [{"filename": "ü.png"}]}
# What earlier versions wrote, with Powertools' Idempotency.
OLD_RUNNING = {
    "id": "job#1",
    "status": "INPROGRESS",
    "expiration": int(NOW) + 86_400,
    "in_progress_expiration": int(NOW + 15) * 1000,
}
OLD_COMPLETED = {**OLD_RUNNING, "status": "COMPLETED", "data": json.dumps(RESPONSE)}


def running(owner: str, until: float = NOW + 15, **changes: Any) -> JobRecord:
    record = JobRecord(
        id="job#1",
        status=Status.RUNNING,
        lease=Lease(owner, until),
        expires_at=int(NOW) + 86_400,
        request="request",
    )
    return replace(record, **changes)


def completed(owner: str, **changes: Any) -> JobRecord:
    return running(owner, **{"status": Status.COMPLETED, "response": RESPONSE, **changes})


@pytest.fixture
def store(table: JobTable) -> Iterator[Store]:
    with closing(open_store(table.settings)) as store:
        yield store


def test_running_job_is_claimed_once(store: Store) -> None:
    assert store.claim(running("a"), NOW) is None
    assert store.claim(running("b"), NOW) == running("a")


def test_claim_that_is_repeated_by_its_owner_succeeds_again(store: Store) -> None:
    assert store.claim(running("a"), NOW) is None
    assert store.claim(running("a"), NOW) is None


def test_claims_of_different_jobs_do_not_meet(store: Store) -> None:
    assert store.claim(running("a"), NOW) is None
    assert store.claim(running("b", id="job#2"), NOW) is None


def test_claim_lapses_after_the_end_of_its_lease(store: Store) -> None:
    store.claim(running("a"), NOW)

    assert store.claim(running("b"), NOW + 15) == running("a")
    assert store.claim(running("b", until=NOW + 30), NOW + 15.001) is None
    assert store.claim(running("c"), NOW + 15.002) == running("b", until=NOW + 30)


def test_renewed_claim_lapses_later(store: Store) -> None:
    store.claim(running("a"), NOW)

    assert store.renew("job#1", Lease("a", NOW + 20))
    assert store.claim(running("b"), NOW + 19) == running("a", until=NOW + 20)


def test_lapsed_claim_can_be_renewed_while_it_is_not_taken(store: Store) -> None:
    store.claim(running("a"), NOW)

    assert store.renew("job#1", Lease("a", NOW + 60))
    assert store.claim(running("b"), NOW + 50) is not None


def test_late_owner_changes_nothing_of_a_claim_that_was_taken_over(store: Store) -> None:
    store.claim(running("late"), NOW)
    taken = running("b", until=NOW + 45)
    store.claim(taken, NOW + 30)

    assert not store.renew("job#1", Lease("late", NOW + 99))
    assert not store.complete(completed("late"))
    assert not store.delete("job#1", "late")
    assert store.claim(running("c"), NOW + 31) == taken


def test_late_owner_changes_nothing_of_a_response_that_is_stored(store: Store) -> None:
    store.claim(running("late"), NOW)
    store.claim(running("b", until=NOW + 45), NOW + 30)
    stored = completed("b", until=NOW + 45)
    assert store.complete(stored)

    assert not store.renew("job#1", Lease("late", NOW + 99))
    assert not store.complete(completed("late", response={**RESPONSE, "id": "late"}))
    assert not store.delete("job#1", "late")
    assert store.claim(running("c"), NOW + 31) == stored


def test_late_owner_stores_its_response_where_no_record_is(store: Store) -> None:
    store.claim(running("late"), NOW)
    store.claim(running("b"), NOW + 30)
    assert store.delete("job#1", "b")

    assert store.complete(completed("late"))
    assert store.claim(running("c"), NOW + 31) == completed("late")


def test_lapsed_or_released_claim_is_not_taken_over_by_another_request(store: Store) -> None:
    other = running("b", until=NOW + 45, request="other")
    store.claim(running("a"), NOW)

    assert store.claim(other, NOW + 30) == running("a")
    store.release("job#1", "a")
    assert store.claim(other, NOW + 30) == running("", until=0)
    assert store.claim(other, NOW + 86_400) is None


def test_delivery_is_taken_over_once_after_its_lease(store: Store) -> None:
    store.claim(running("a"), NOW)
    pending = completed("a", webhook="msg_1")
    store.complete(pending)

    assert not store.take_delivery("job#1", Lease("b", NOW + 30), NOW + 15)
    assert store.take_delivery("job#1", Lease("b", NOW + 30), NOW + 15.001)
    assert not store.take_delivery("job#1", Lease("c", NOW + 31), NOW + 16)
    assert store.claim(running("c"), NOW + 99) == replace(pending, lease=Lease("b", NOW + 30))


def test_delivery_that_has_ended_is_not_taken_over(store: Store) -> None:
    store.claim(running("a"), NOW)
    store.complete(completed("a", webhook="msg_1"))

    assert not store.end_delivery("job#1", "b")
    assert store.end_delivery("job#1", "a")
    assert not store.take_delivery("job#1", Lease("b", NOW + 90), NOW + 60)
    assert store.claim(running("b"), NOW + 60) == completed("a")


def test_delivery_of_a_job_without_a_webhook_is_not_taken_over(store: Store) -> None:
    store.claim(running("a"), NOW)

    assert not store.take_delivery("job#1", Lease("b", NOW + 90), NOW + 60)
    assert not store.take_delivery("job#2", Lease("b", NOW + 90), NOW + 60)
    store.complete(completed("a"))
    assert not store.take_delivery("job#1", Lease("b", NOW + 90), NOW + 60)


def test_released_job_can_be_claimed_at_once(store: Store) -> None:
    store.claim(running("a"), NOW)

    assert store.release("job#1", "a")
    assert not store.release("job#1", "a")
    assert not store.renew("job#1", Lease("a", NOW + 99))
    assert store.claim(running("b"), NOW) is None


def test_late_owner_stores_its_response_where_the_claim_was_released(store: Store) -> None:
    store.claim(running("late"), NOW)
    store.claim(running("b"), NOW + 30)
    store.release("job#1", "b")

    assert not store.complete(completed("late", request="other"))
    assert store.complete(completed("late"))
    assert not store.release("job#1", "late")
    assert store.claim(running("c"), NOW + 31) == completed("late")


def test_record_is_read_by_its_id_until_it_expires(store: Store) -> None:
    assert store.get("job#1", NOW) is None
    store.claim(running("a"), NOW)

    assert store.get("job#1", NOW + 86_399) == running("a")
    assert store.get("job#1", NOW + 86_400) is None


def test_deleted_job_can_be_claimed(store: Store) -> None:
    store.claim(running("a"), NOW)

    assert store.delete("job#1", "a")
    assert not store.delete("job#1", "a")
    assert not store.renew("job#1", Lease("a", NOW + 99))
    assert store.claim(running("b"), NOW) is None


def test_completed_job_is_not_claimed_until_it_expires(store: Store) -> None:
    store.claim(running("a"), NOW)
    stored = completed("a", expires_at=int(NOW) + 100)
    store.complete(stored)

    assert store.claim(running("b"), NOW + 99.9) == stored
    assert store.claim(running("b", until=NOW + 115), NOW + 100) is None
    assert store.claim(running("c"), NOW + 100) == running("b", until=NOW + 115)


def test_completed_job_stays_completed_when_a_late_renewal_comes(store: Store) -> None:
    store.claim(running("a"), NOW)
    store.complete(completed("a"))

    store.renew("job#1", Lease("a", NOW + 20))

    assert store.claim(running("b"), NOW + 60) == completed("a", lease=Lease("a", NOW + 20))


def test_response_comes_back_as_it_was(store: Store) -> None:
    response = {"status": "completed", "text": "ü \ud800 \x00 '", "deep": [{"n": 1.5}, None, True]}
    store.complete(completed("a", response=response))

    existing = store.claim(running("b"), NOW)

    assert existing is not None
    assert json.dumps(existing.response) == json.dumps(response)


def test_largest_response_fits(store: Store) -> None:
    limit = store.max_response_bytes or 2_000_000
    response = {"status": "completed", "text": ""}
    response["text"] = "x" * (limit - len(json.dumps(response)))

    assert store.complete(completed("a" * 32, id="job#" + "f" * 64, response=response))


@pytest.mark.parametrize(
    "damage",
    [
        {"status": "LOST"},
        {"status": ""},
        {"data": ""},
        {"data": "{"},
        {"data": "[]"},
        {"data": '"completed"'},
        {"data": "{}"},
        {"data": '{"status": "failed"}'},
        {"in_progress_expiration": "soon"},
    ],
    ids=str,
)
def test_damaged_record_is_called_so(store: Store, table: JobTable, damage: dict[str, Any]) -> None:
    table.put({**to_item(completed("a")), **damage})

    with pytest.raises(UnreadableRecord, match="record of the job is damaged"):
        store.claim(running("b"), NOW)


def test_damaged_record_is_forgotten_when_it_expires(store: Store, table: JobTable) -> None:
    table.put({**to_item(completed("a")), "data": "{"})

    assert store.claim(running("b"), NOW + 86_400) is None


def test_dynamodb_item_without_its_attributes_is_damaged(dynamodb: DynamoDBTable) -> None:
    dynamodb.put({"id": "job#1"})

    with (
        closing(open_store(dynamodb.settings)) as store,
        pytest.raises(UnreadableRecord, match="KeyError"),
    ):
        store.claim(running("b"), NOW)


def put_old(table: JobTable, item: dict[str, Any]) -> None:
    """Store the item as earlier versions did."""
    if not isinstance(table, SqliteTable):
        table.put(item)
        return
    table.path.parent.mkdir(parents=True)
    with closing(sqlite3.connect(table.path)) as db, db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(
            """
            CREATE TABLE jobs (
                id TEXT PRIMARY KEY,
                status TEXT NOT NULL,
                expiration INTEGER NOT NULL,
                in_progress_expiration INTEGER,
                data TEXT NOT NULL,
                validation TEXT NOT NULL
            ) WITHOUT ROWID;
            CREATE TABLE store (only INTEGER PRIMARY KEY CHECK (only = 1), name TEXT);
            INSERT INTO store VALUES (1, 'C0FFEE');
            CREATE INDEX jobs_by_expiration ON jobs (expiration);
            """
        )
        row = {"data": "", "validation": "", **item}
        marks = ", ".join(f":{name}" for name in row)
        db.execute(f"INSERT INTO jobs ({', '.join(row)}) VALUES ({marks})", row)


@pytest.mark.parametrize(
    ("item", "record"),
    [
        (OLD_COMPLETED, completed("", request="")),
        (OLD_RUNNING, running("", request="")),
    ],
    ids=["completed", "running"],
)
def test_record_of_an_earlier_version_is_read(
    table: JobTable, item: dict[str, Any], record: JobRecord
) -> None:
    put_old(table, item)

    with closing(open_store(table.settings)) as store:
        assert store.get("job#1", NOW) == record
        assert store.claim(running("b"), NOW + 16) == record


def test_file_of_an_earlier_version_keeps_its_identity_and_loses_its_old_table(
    sqlite: SqliteTable,
) -> None:
    put_old(sqlite, OLD_COMPLETED)

    for _ in range(2):
        with closing(open_store(sqlite.settings)) as store:
            assert store.identity == "C0FFEE"
    assert len(sqlite.items()) == 1
    assert b"CREATE TABLE jobs" not in sqlite.path.read_bytes()


def test_file_whose_records_have_no_request_is_read(sqlite: SqliteTable) -> None:
    with closing(open_store(sqlite.settings)) as store:
        store.complete(completed("a", request=""))
    with closing(sqlite3.connect(sqlite.path)) as db, db:
        db.execute("ALTER TABLE job_records DROP COLUMN request")
        db.execute("PRAGMA user_version = 1")

    for _ in range(2):
        with closing(open_store(sqlite.settings)) as store:
            assert store.get("job#1", NOW) == completed("a", request="")


def test_sqlite_forgets_expired_records_of_all_jobs(sqlite: SqliteTable) -> None:
    with closing(open_store(sqlite.settings)) as store:
        for number in range(3):
            store.complete(completed("a", id=f"job#{number}", expires_at=int(NOW) + number))

        store.claim(running("b", id="job#other"), NOW + 1)

    assert {item["id"] for item in sqlite.items()} == {"job#2", "job#other"}


def test_sqlite_file_is_its_users_alone(sqlite: SqliteTable) -> None:
    path = sqlite.path

    with closing(open_store(sqlite.settings)) as store:
        store.claim(running("a"), NOW)

        files = [path.parent, *path.parent.iterdir()]
        assert len(files) == 4
        assert {file.stat().st_mode & 0o077 for file in files} == {0}


def test_sqlite_store_keeps_its_identity_and_differs_from_others(
    sqlite: SqliteTable, tmp_path: Path
) -> None:
    others = [sqlite.settings, sqlite.settings, Settings(jobs_db=tmp_path / "other.sqlite")]
    names = []
    for one in others:
        with closing(open_store(one)) as store:
            names.append(store.identity)

    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize("is_shared", [True, False], ids=["one store", "a store for each"])
def test_of_many_threads_that_claim_a_job_one_gets_it(sqlite: SqliteTable, is_shared: bool) -> None:
    shared = open_store(sqlite.settings)
    stores = [shared if is_shared else open_store(sqlite.settings) for _ in range(8)]
    together = threading.Barrier(len(stores))
    results: list[tuple[str, JobRecord | None]] = []

    def claim(store: Store, owner: str) -> None:
        together.wait()
        results.append((owner, store.claim(running(owner), NOW)))

    threads = [
        threading.Thread(target=claim, args=(store, str(number)))
        for number, store in enumerate(stores)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for store in {id(store): store for store in [shared, *stores]}.values():
        store.close()

    (winner,) = [owner for owner, existing in results if existing is None]
    assert [existing for _, existing in results if existing] == [running(winner)] * 7


PROCESS = """
import os, sys
from handler.jobs.record import JobRecord, Lease, Status
from handler.jobs.store import open_store
from handler.settings import Settings
print("ready", flush=True)
sys.stdin.readline()
store = open_store(Settings.from_env(os.environ))
owner, now = sys.argv[1], float(sys.argv[2])
record = JobRecord(
    id="job#1",
    status=Status.RUNNING,
    lease=Lease(owner, now + 15),
    expires_at=int(now) + 60,
    request="request",
)
existing = store.claim(record, now)
print(existing.lease.owner if existing else owner)
"""


def test_of_many_processes_that_create_the_file_and_claim_a_job_one_gets_it(
    sqlite: SqliteTable,
) -> None:
    owners = [str(number) for number in range(6)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, owner, str(NOW)],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for owner in owners
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()

    answers = [process.communicate(timeout=60)[0].strip() for process in processes]

    assert answers == [answers[0]] * len(owners)
    assert answers[0] in owners


class StoreMachine(RuleBasedStateMachine):
    """Three invocations and one job, against the rules of `Store` in plain Python."""

    store: Store
    numbers = itertools.count()
    owners = st.sampled_from("abc")
    record: JobRecord | None

    @initialize()
    def begin(self) -> None:
        # A new job, because the table outlives the example.
        self.id = f"job#{next(self.numbers)}"
        self.now, self.record = NOW, None

    @rule(seconds=st.sampled_from([1, 7, 15, 60]))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule(owner=owners)
    def claim(self, owner: str) -> None:
        asked = running(owner, until=self.now + 15, id=self.id, expires_at=int(self.now) + 50)
        is_free = self.record is None or (
            self.record.expires_at <= self.now
            or self.record.lease.owner == owner
            or (self.record.status is Status.RUNNING and self.record.lease.until < self.now)
        )

        existing = self.store.claim(asked, self.now)

        assert existing == (None if is_free else self.record)
        if is_free:
            self.record = asked

    @rule(owner=owners)
    def renew(self, owner: str) -> None:
        lease = Lease(owner, self.now + 15)

        assert self.store.renew(self.id, lease) == self.is_owned_by(owner)

        if self.record and self.is_owned_by(owner):
            self.record = replace(self.record, lease=lease)

    @rule(owner=owners)
    def complete(self, owner: str) -> None:
        record = completed(owner, until=self.now, id=self.id, expires_at=int(self.now) + 50)

        is_stored = self.store.complete(record)

        is_free = self.record is None or (
            self.record.status is Status.RUNNING and self.record.lease.owner == ""
        )
        assert is_stored == (is_free or self.is_owned_by(owner))
        if is_stored:
            self.record = record

    @rule(owner=owners)
    def release(self, owner: str) -> None:
        is_running = self.record is not None and self.record.status is Status.RUNNING
        is_released = is_running and self.is_owned_by(owner)

        assert self.store.release(self.id, owner) == is_released

        if self.record and is_released:
            self.record = replace(self.record, lease=Lease("", 0))

    @rule(owner=owners)
    def delete(self, owner: str) -> None:
        assert self.store.delete(self.id, owner) == self.is_owned_by(owner)

        if self.is_owned_by(owner):
            self.record = None

    def is_owned_by(self, owner: str) -> bool:
        return self.record is not None and self.record.lease.owner == owner


def test_every_sequence_of_calls_keeps_the_rules(store: Store) -> None:
    run_state_machine_as_test(
        type("Machine", (StoreMachine,), {"store": store}),
        settings=settings(
            max_examples=25,
            stateful_step_count=12,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_renewal_moves_the_end_of_the_lease_alone(store: Store, table: JobTable) -> None:
    store.claim(running("a"), NOW)
    (before,) = table.items()

    store.renew("job#1", Lease("a", NOW + 20.5))

    (after,) = table.items()
    assert lease_until(table) == NOW + 20.5
    assert after | {"in_progress_expiration": before["in_progress_expiration"]} == before
