"""What a job store promises: the same tests on SQLite and on DynamoDB (moto's server).

Times are numbers that the tests choose. Which changes are allowed is tested in test_job_moves.py,
what handlers make of a store in test_claims.py and test_jobs.py.
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

from handler.jobs import moves
from handler.jobs.moves import Move
from handler.jobs.record import (
    TOMBSTONE_S,
    JobRecord,
    Lease,
    Progress,
    Status,
    UnreadableRecord,
    WebhookState,
    to_item,
)
from handler.jobs.store import JobQuery, Store, StoreError, open_store
from handler.settings import PROJECT, Settings
from tests.handler.job_tables import DynamoDBTable, JobTable, SqliteTable

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

NOW = 1_800_000_000.0
DAY = 86_400
RESPONSE = {"id": "1", "status": "completed", "output": [{"filename": "ü.png"}]}
FAILURE = {"id": "1", "status": "failed", "error": {"type": "ExecutionFailed"}}
# What the version before this one wrote.
EARLIER = {
    "id": "id#1",
    "status": "INPROGRESS",
    "owner": "a",
    "in_progress_expiration": int(NOW + 15) * 1000,
    "expiration": int(NOW) + DAY,
    "request": "request",
    "webhook": "",
    "data": "",
}


def running(owner: str = "a", until: float = NOW + 15, **changes: Any) -> JobRecord:
    record = JobRecord(
        id="id#1",
        status=Status.RUNNING,
        lease=Lease(owner, until),
        retained_until=int(NOW) + DAY,
        request="request",
        source="sqs",
        created=NOW,
        started=NOW,
        worker="host",
    )
    return replace(record, **changes)


def completed(owner: str = "a", **changes: Any) -> JobRecord:
    given = {"status": Status.COMPLETED, "response": RESPONSE, "finished": NOW + 5, **changes}
    return running(owner, **given)


def set_to(record: JobRecord | None) -> Move:
    """A move to this record from any other."""
    return lambda _: record


def put(store: Store, record: JobRecord, now: float = NOW) -> JobRecord:
    after = store.change(record.id, set_to(record), now).after
    assert after is not None
    return after


@pytest.fixture
def store(table: JobTable) -> Iterator[Store]:
    with closing(open_store(table.settings)) as store:
        yield store


@pytest.mark.parametrize(
    "record",
    [
        running(attempt=3, deaths=1, is_cancel_requested=True),
        running(progress=Progress(percentage=12.5, node_id="3", class_type="KSampler", eta_s=2.5)),
        running(outputs=({"filename": "a.png"}, {"filename": "ü"})),
        running(status=Status.QUEUED, lease=Lease("", 0.0), started=None, worker=""),
        completed(webhook="msg_1", webhook_state=WebhookState.PENDING),
        completed(must_rerun=True),
        completed(status=Status.FAILED, response=FAILURE, request=""),
        completed(status=Status.CANCELLED, response={**FAILURE, "status": "cancelled"}),
        completed(response={"status": "completed", "text": "ü \ud800 \x00 '", "n": [1.5, None]}),
    ],
    ids=lambda record: str(record.status.name),
)
def test_record_comes_back_as_it_was(store: Store, record: JobRecord) -> None:
    stored = put(store, record)

    assert stored == replace(record, version=1)
    assert store.get("id#1", NOW) == stored
    assert store.change("id#1", lambda _: None, NOW).before == stored


def test_absent_record_is_none(store: Store) -> None:
    assert store.get("id#1", NOW) is None
    assert not store.is_cancel_requested("id#1")
    refused = store.change("id#1", lambda _: None, NOW)
    assert (refused.before, refused.after, refused.is_made) == (None, None, False)


def test_change_that_is_refused_returns_the_record_that_is_there(store: Store) -> None:
    stored = put(store, running())

    refused = store.change("id#1", moves.claim(running("b"), NOW), NOW)

    assert (refused.before, refused.after, refused.is_made) == (stored, stored, False)


def test_change_sees_what_another_one_has_made_meanwhile(store: Store) -> None:
    known = put(store, running())
    cancel = moves.request_cancel({}, "msg_1", NOW, DAY)
    assert store.change("id#1", cancel, NOW).is_made

    renewed = store.change("id#1", moves.renew(Lease("a", NOW + 20)), NOW + 5, known=known)

    assert renewed.is_made
    assert renewed.after == replace(
        known, version=3, lease=Lease("a", NOW + 20), is_cancel_requested=True
    )
    assert store.is_cancel_requested("id#1")


def test_known_record_that_is_outdated_does_not_decide(store: Store) -> None:
    known = put(store, running())
    taken = put(store, running("b", until=NOW + 99))

    refused = store.change("id#1", moves.renew(Lease("a", NOW + 20)), NOW + 5, known=known)
    assert (refused.before, refused.is_made) == (taken, False)
    # Refused by the record as it was known, allowed by the one that is there.
    allowed = store.change("id#1", moves.renew(Lease("b", NOW + 120)), NOW + 5, known=known)
    assert allowed.is_made


def test_largest_response_fits(store: Store) -> None:
    limit = store.max_response_bytes or 2_000_000
    response = {"status": "completed", "text": ""}
    response["text"] = "x" * (limit - len(json.dumps(response)))

    assert put(store, completed(id="id#" + "f" * 200, response=response)).response == response


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
        {"progress": "{"},
        {"progress": '{"unknown": 1}'},
        {"outputs": "{"},
        {"in_progress_expiration": "soon"},
    ],
    ids=str,
)
def test_damaged_record_is_called_so(store: Store, table: JobTable, damage: dict[str, Any]) -> None:
    table.put({**to_item(completed(version=1)), **damage})

    with pytest.raises(UnreadableRecord, match="record of the job is damaged"):
        store.change("id#1", moves.claim(running("b"), NOW), NOW)
    assert store.list(JobQuery(), NOW).records == () or "status" not in damage


def test_damaged_record_is_forgotten_when_it_expires(store: Store, table: JobTable) -> None:
    table.put({**to_item(completed(version=1)), "data": "{"})

    later = NOW + DAY + TOMBSTONE_S
    assert store.change("id#1", moves.claim(running("b"), later), later).is_made


def test_dynamodb_item_without_its_attributes_is_damaged(dynamodb: DynamoDBTable) -> None:
    dynamodb.put({"id": "id#1"})

    with (
        closing(open_store(dynamodb.settings)) as store,
        pytest.raises(UnreadableRecord, match="KeyError"),
    ):
        store.get("id#1", NOW)


def test_record_is_known_for_a_month_after_it_was_retained(store: Store) -> None:
    put(store, completed())
    last, over = NOW + DAY - 1, NOW + DAY

    retained, tombstone = store.get("id#1", last), store.get("id#1", over)
    assert retained is not None
    assert retained.is_retained(last)
    assert tombstone is not None
    assert not tombstone.is_retained(over)
    assert store.get("id#1", over + TOMBSTONE_S - 1) is not None
    assert store.get("id#1", over + TOMBSTONE_S) is None


def test_record_that_is_no_longer_retained_can_be_claimed_by_another_request(store: Store) -> None:
    put(store, completed())
    other = running("b", request="other", retained_until=int(NOW) + 9 * DAY)

    assert not store.change("id#1", moves.claim(other, NOW + DAY - 1), NOW + DAY - 1).is_made
    assert store.change("id#1", moves.claim(other, NOW + DAY), NOW + DAY).is_made


def test_list_has_the_newest_first_by_pages(store: Store) -> None:
    for number in range(7):
        put(store, running(id=f"id#{number}", created=NOW + number // 2))

    pages, cursor = [], ""
    while True:
        page = store.list(JobQuery(limit=3, cursor=cursor), NOW)
        pages.append([record.request_id for record in page.records])
        if not (cursor := page.cursor):
            break

    assert [len(page) for page in pages] == [3, 3, 1]
    listed = [number for page in pages for number in page]
    assert sorted(listed) == list("0123456")
    assert [int(number) // 2 for number in listed] == [3, 2, 2, 1, 1, 0, 0]


def test_list_has_what_the_query_asks_for(store: Store) -> None:
    put(store, running(id="id#r", progress=Progress(percentage=1.0), outputs=({"a": 1},)))
    put(store, completed(id="id#c", source="http", created=NOW + 1))
    put(store, completed(id="id#f", status=Status.FAILED, response=FAILURE, created=NOW + 2))
    put(store, completed(id="id#old", retained_until=int(NOW) - 1))

    def ids(**query: Any) -> list[str]:
        return [record.request_id for record in store.list(JobQuery(**query), NOW).records]

    assert ids() == ["f", "c", "r"]
    assert ids(source="http") == ["c"]
    assert ids(statuses=frozenset({Status.RUNNING, Status.FAILED})) == ["f", "r"]
    assert ids(created_before=NOW + 1) == ["r"]
    listed = store.list(JobQuery(), NOW).records
    assert {(record.response, record.outputs) for record in listed} == {(None, ())}
    assert store.counts(NOW) == {Status.RUNNING: 1, Status.COMPLETED: 1, Status.FAILED: 1}


@pytest.mark.parametrize("cursor", ["x", "é", "MTIz", "e30=", "=" * 5])
def test_cursor_that_no_page_had_is_refused(store: Store, cursor: str) -> None:
    with pytest.raises(ValueError, match="the cursor is none"):
        store.list(JobQuery(cursor=cursor), NOW)


def test_table_without_its_index_works_but_for_lists(dynamodb: DynamoDBTable) -> None:
    dynamodb.drop()
    dynamodb.create(with_index=False)

    with closing(open_store(dynamodb.settings)) as store:
        stored = put(store, running())
        assert store.get("id#1", NOW) == stored
        with pytest.raises(StoreError, match="no index by_created"):
            store.list(JobQuery(), NOW)


@pytest.mark.parametrize(
    ("item", "record"),
    [
        (EARLIER, {"status": Status.RUNNING}),
        (
            {**EARLIER, "status": "COMPLETED", "data": json.dumps(RESPONSE), "webhook": "msg_1"},
            {
                "status": Status.COMPLETED,
                "response": RESPONSE,
                "webhook": "msg_1",
                "webhook_state": WebhookState.PENDING,
            },
        ),
    ],
    ids=["running", "completed"],
)
def test_record_of_an_earlier_version_is_read_and_changed(
    table: JobTable, item: dict[str, Any], record: dict[str, Any]
) -> None:
    put_earlier(table, item)
    expected = running(source="", created=0.0, started=None, worker="", **record)

    with closing(open_store(table.settings)) as store:
        assert store.get("id#1", NOW) == expected
        renewed = store.change("id#1", moves.renew(Lease("a", NOW + 20)), NOW)
        assert renewed.after == replace(expected, lease=Lease("a", NOW + 20), version=1)
        assert store.get("id#1", NOW) == renewed.after


def put_earlier(table: JobTable, item: dict[str, Any]) -> None:
    """Store the item as version 3 of the file did."""
    if not isinstance(table, SqliteTable):
        table.put(item)
        return
    table.path.parent.mkdir(parents=True)
    with closing(sqlite3.connect(table.path)) as db, db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(
            """
            CREATE TABLE job_records (
                id TEXT PRIMARY KEY,
                status TEXT NOT NULL,
                owner TEXT NOT NULL,
                in_progress_expiration INTEGER NOT NULL,
                expiration INTEGER NOT NULL,
                data TEXT NOT NULL,
                request TEXT NOT NULL DEFAULT '',
                webhook TEXT NOT NULL DEFAULT ''
            ) WITHOUT ROWID;
            CREATE INDEX job_records_by_expiration ON job_records (expiration);
            CREATE TABLE store (only INTEGER PRIMARY KEY CHECK (only = 1), name TEXT);
            INSERT INTO store VALUES (1, 'C0FFEE');
            CREATE TABLE jobs (id TEXT PRIMARY KEY);
            PRAGMA user_version = 3;
            """
        )
        marks = ", ".join(f":{name}" for name in item)
        db.execute(f"INSERT INTO job_records ({', '.join(item)}) VALUES ({marks})", item)


def test_file_of_an_earlier_version_keeps_its_identity_and_loses_its_old_table(
    sqlite: SqliteTable,
) -> None:
    put_earlier(sqlite, EARLIER)

    for _ in range(2):
        with closing(open_store(sqlite.settings)) as store:
            assert store.identity == "C0FFEE"
    assert len(sqlite.items()) == 1
    with closing(sqlite3.connect(sqlite.path)) as db:
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_schema")}
    assert "jobs" not in tables


def test_sqlite_blanks_what_is_no_longer_retained_and_forgets_it_later(
    sqlite: SqliteTable,
) -> None:
    with closing(open_store(sqlite.settings)) as store:
        for number in range(3):
            put(store, completed(id=f"id#{number}", retained_until=int(NOW) + number))

        put(store, running(id="id#other"), NOW + 1)
        data = {item["id"]: item["data"] for item in sqlite.items()}
        put(store, running(id="id#other"), NOW + 1 + TOMBSTONE_S)

    assert data == {
        "id#0": "null",
        "id#1": "null",
        "id#2": json.dumps(RESPONSE),
        "id#other": "",
    }
    assert {item["id"] for item in sqlite.items()} == {"id#2", "id#other"}


def test_sqlite_forgets_a_few_records_with_each_change(sqlite: SqliteTable) -> None:
    with closing(open_store(sqlite.settings)) as store:
        for number in range(50):
            put(store, completed(id=f"id#{number}"))

        for expected in (30, 10, 0):
            put(store, running(), NOW + DAY)
            kept = [item for item in sqlite.items() if item["data"] not in ("", "null")]
            assert len(kept) == expected


def test_sqlite_file_is_its_users_alone(sqlite: SqliteTable) -> None:
    path = sqlite.path

    with closing(open_store(sqlite.settings)) as store:
        put(store, running())

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
    made: list[str] = []

    def claim(store: Store, owner: str) -> None:
        together.wait()
        if store.change("id#1", moves.claim(running(owner), NOW), NOW).is_made:
            made.append(owner)

    threads = [
        threading.Thread(target=claim, args=(store, str(number)))
        for number, store in enumerate(stores)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    final = shared.get("id#1", NOW)
    for store in {id(store): store for store in [shared, *stores]}.values():
        store.close()

    assert final is not None
    assert made == [final.lease.owner]


def test_no_change_of_two_that_count_at_the_same_time_is_lost(sqlite: SqliteTable) -> None:
    # Not with moto, which checks a condition and writes in two steps.
    stores = [open_store(sqlite.settings) for _ in range(4)]
    put(stores[0], running())

    def count(store: Store) -> None:
        for _ in range(5):
            assert store.change("id#1", moves.note_death("a"), NOW).is_made

    threads = [threading.Thread(target=count, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    record = stores[0].get("id#1", NOW)
    for store in stores:
        store.close()

    assert record is not None
    assert (record.deaths, record.version) == (20, 21)


PROCESS = """
import os, sys
from handler.jobs import moves
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
    retained_until=int(now) + 60,
    request="request",
)
print(store.change(record.id, moves.claim(record, now), now).after.lease.owner)
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


def made(move: Move, before: JobRecord | None) -> JobRecord | None:
    """What the move makes of the record, with its version; None if it refuses."""
    after = move(before)
    return after and replace(after, version=(before.version if before else 0) + 1)


class StoreMachine(RuleBasedStateMachine):
    """Three handlers, a caller and one job: the store against the moves in plain Python."""

    store: Store
    numbers = itertools.count()
    owners = st.sampled_from("abc")
    requests = st.sampled_from(["request", "other"])
    record: JobRecord | None
    known: JobRecord | None

    @initialize()
    def begin(self) -> None:
        # A new job, because the table outlives the example.
        self.id = f"id#{next(self.numbers)}"
        self.now, self.record, self.known = NOW, None, None

    def make(self, move: Move, *, is_known: bool) -> None:
        before = self.record
        self.record = made(move, before) or before
        known = self.known if is_known else None
        is_repeated = before is not None and made(move, known) == before

        changed = self.store.change(self.id, move, self.now, known=known)

        if is_repeated and changed.after == before:
            # DynamoDB's store takes it for the call that has made this record.
            self.record = before
        else:
            assert changed.is_made == (made(move, before) is not None)
            assert changed.after == self.record
        self.known = before

    @rule(seconds=st.sampled_from([1, 7, 15, 60]))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule(owner=owners, request=requests, is_known=st.booleans())
    def claim(self, owner: str, request: str, is_known: bool) -> None:
        lease = Lease(f"{owner}{next(self.numbers)}", self.now + 15)
        record = running(
            id=self.id, lease=lease, request=request, retained_until=int(self.now) + 50
        )
        self.make(moves.claim(record, self.now), is_known=is_known)

    @rule(request=requests, is_known=st.booleans())
    def accept(self, request: str, is_known: bool) -> None:
        record = running(
            id=self.id,
            status=Status.QUEUED,
            lease=Lease("", 0.0),
            request=request,
            retained_until=int(self.now) + 50,
        )
        self.make(moves.accept(record, self.now), is_known=is_known)

    @rule(is_owner=st.booleans(), percentage=st.sampled_from([None, 10.0, 50.0]))
    def renew(self, is_owner: bool, percentage: float | None) -> None:
        progress = None if percentage is None else Progress(percentage=percentage)
        move = moves.renew(Lease(self.owner(is_owner), self.now + 15), progress, ({"a": 1},))
        self.make(move, is_known=is_owner)

    @rule(is_owner=st.booleans(), status=st.sampled_from(["completed", "failed", "cancelled"]))
    def finish(self, is_owner: bool, status: str) -> None:
        record = completed(
            id=self.id,
            lease=Lease(self.owner(is_owner), self.now),
            status=Status[status.upper()],
            response={"status": status},
            retained_until=int(self.now) + 50,
        )
        self.make(moves.finish(record), is_known=is_owner)

    @rule(is_owner=st.booleans())
    def requeue(self, is_owner: bool) -> None:
        self.make(moves.requeue(self.owner(is_owner)), is_known=is_owner)

    @rule(is_known=st.booleans())
    def cancel(self, is_known: bool) -> None:
        move = moves.request_cancel({"status": "cancelled"}, "msg_1", self.now, 50)
        self.make(move, is_known=is_known)

    @rule(is_known=st.booleans())
    def deliver(self, is_known: bool) -> None:
        move = moves.take_delivery(Lease(f"d{self.now}", self.now + 15), self.now)
        self.make(move, is_known=is_known)

    @rule(is_owner=st.booleans(), state=st.sampled_from(WebhookState))
    def end_delivery(self, is_owner: bool, state: WebhookState) -> None:
        self.make(moves.end_delivery(self.owner(is_owner), state), is_known=is_owner)

    def owner(self, is_owner: bool) -> str:
        return self.record.lease.owner if self.record and is_owner else "late"


@pytest.mark.slow
def test_store_makes_every_move_as_in_memory(table: JobTable) -> None:
    class Machine(StoreMachine):
        store = open_store(table.settings)

    with closing(Machine.store):
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=30,
                stateful_step_count=20,
                deadline=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            ),
        )
