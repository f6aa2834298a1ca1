"""What the handler makes of a job store: claims, renewals and stored responses.

The same tests on SQLite and on DynamoDB (moto's server), with a clock that the tests set. Whole
handlers with repeated requests are in test_jobs.py.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from events.contract import caller_of, parse_request
from events.errors import AlreadyRunning, IdConflict
from events.job import Job
from handler.jobs import Claim, Jobs, claims, held_claim, moves
from handler.jobs.record import record_id
from handler.jobs.store import open_store
from handler.log import logger
from handler.settings import PROJECT
from tests.clock import Clock
from tests.handler.job_tables import DynamoDBTable, JobTable, SqliteTable, lease_until
from tests.processes import wait_until
from tests.workflows import event, node

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

NOW = 1_800_000_000.0
RESPONSE = {"id": "known", "status": "completed", "comfyui_response": {}, "output": []}
FAILURE = {**RESPONSE, "status": "failed", "error": {"type": "WorkerUnavailable"}}


def job(request_id: str = "known", workflow: Any = None, **given: Any) -> Job:
    request = event(workflow or {"1": node("A")}, request_id=request_id, **given)
    return parse_request(request, caller_of(request))


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def jobs(table: JobTable, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    monkeypatch.setattr(claims, "OBSERVE_S", 0.01)
    with closing(Jobs(table.settings, clock)) as jobs:
        yield jobs


@pytest.fixture
def log() -> Iterator[list[dict[str, Any]]]:
    """The log lines that tell an event."""
    lines: list[dict[str, Any]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if hasattr(record, "event"):
                lines.append(vars(record))

    handler = Handler()
    target = logging.getLogger(logger.name)
    target.addHandler(handler)
    yield lines
    target.removeHandler(handler)


@pytest.fixture
def claim(jobs: Jobs) -> Iterator[Callable[..., Claim]]:
    """Claims the job; every claim is released after the test."""
    made: list[Claim] = []

    def claim(**request: Any) -> Claim:
        made.append(jobs.claim(job(**request)))
        return made[-1]

    yield claim
    for one in made:
        one.release()


def test_stored_response_answers_the_repeat(
    claim: Callable[[], Claim], log: list[dict[str, Any]]
) -> None:
    first = claim()
    assert first.stored is None
    first.end(RESPONSE)

    assert claim().stored == RESPONSE
    assert [line["event"] for line in log] == ["job.repeated"]


def test_running_job_is_refused_to_others(claim: Callable[[], Claim]) -> None:
    claim()

    with pytest.raises(AlreadyRunning, match="is running in another invocation"):
        claim()


def test_claim_that_is_held_says_when_it_can_have_ended(
    claim: Callable[[], Claim], clock: Clock
) -> None:
    claim()
    clock.now += 4.2

    with pytest.raises(AlreadyRunning) as refusal:
        claim()
    assert refusal.value.as_dict()["retry_after_s"] == 11


OTHER_WORKFLOW = {"1": node("B")}


@pytest.fixture(
    params=[
        {"workflow": OTHER_WORKFLOW},
        {"webhook": {"url": "https://example.com/hook"}},
        {"webhook": {"extra_params": {"user": "7"}}},
        {"s3": {"bucket_name": "other"}},
        {"return_temp_outputs": True},
    ],
    ids=str,
)
def other(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What another request with the same id has that the first one has not."""
    return dict(request.param)


def test_id_of_a_running_job_is_refused_to_another_request(
    claim: Callable[..., Claim], clock: Clock, other: dict[str, Any]
) -> None:
    claim()

    for _ in range(2):
        with pytest.raises(IdConflict, match="stands for another request"):
            claim(**other)
        # A claim that has lapsed is free for the same request alone.
        clock.now += held_claim.LEASE_S + 0.1
    assert claim().attempt is not None


@pytest.mark.parametrize("response", [FAILURE, RESPONSE], ids=["failed", "completed"])
def test_id_of_a_job_that_has_ended_is_refused_to_another_request(
    claim: Callable[..., Claim], other: dict[str, Any], response: dict[str, Any]
) -> None:
    claim().end(response)

    with pytest.raises(IdConflict):
        claim(**other)
    assert claim().stored == (RESPONSE if response is RESPONSE else None)


def test_request_with_renewed_credentials_is_the_same(claim: Callable[..., Claim]) -> None:
    def signed(signature: str) -> str:
        return f"https://b.s3.amazonaws.com/a.png?v=1&X-Amz-Date={signature}&X-Amz-Signature=ab#f"

    def request(secret: str) -> dict[str, Any]:
        return {
            "workflow": {"1": node("LoadImageFromUrl", url=signed(secret))},
            "s3": {"access_key_id": secret, "secret_access_key": secret, "bucket_name": "b"},
            "webhook": {"url": signed(secret), "secret": secret},
        }

    claim(**request("first")).end(RESPONSE)

    assert claim(**request("second")).stored == RESPONSE


@pytest.mark.parametrize("error", ["InvalidRequest", "WorkflowRejected"])
def test_request_that_was_refused_leaves_its_id_to_another_one(
    claim: Callable[..., Claim], error: str
) -> None:
    claim().end({**FAILURE, "error": {"type": error}})

    assert claim(workflow=OTHER_WORKFLOW).attempt is not None


def test_id_is_free_when_its_response_was_forgotten(
    claim: Callable[..., Claim], clock: Clock
) -> None:
    claim().end(RESPONSE)
    clock.now += 86_400

    assert claim(workflow=OTHER_WORKFLOW).attempt is not None


def test_claim_that_is_given_up_is_free_for_the_same_request(
    claim: Callable[..., Claim], jobs: Jobs
) -> None:
    claim()

    jobs.give_up()

    with pytest.raises(IdConflict):
        claim(workflow=OTHER_WORKFLOW)
    assert claim().attempt is not None


def test_stop_after_the_end_of_a_job_keeps_its_response(
    claim: Callable[..., Claim], jobs: Jobs
) -> None:
    claim().end(RESPONSE)

    jobs.give_up()

    assert claim().stored == RESPONSE


def test_repeat_takes_over_the_webhook_of_a_handler_that_was_killed_during_its_call(
    claim: Callable[[], Claim], clock: Clock
) -> None:
    killed = claim()
    killed.begin_delivery(RESPONSE, "msg_1")
    killed.release()

    with pytest.raises(AlreadyRunning):
        claim()
    clock.now += held_claim.LEASE_S + 0.1
    repeat = claim()
    assert (repeat.stored, repeat.webhook_event) == (RESPONSE, "msg_1")
    with pytest.raises(AlreadyRunning):
        claim()
    repeat.end(RESPONSE)
    again = claim()
    assert (again.stored, again.webhook_event) == (RESPONSE, "")


def test_webhook_that_was_delivered_is_not_called_by_a_repeat(
    claim: Callable[[], Claim],
) -> None:
    first = claim()
    first.begin_delivery(RESPONSE, "msg_1")
    first.end(RESPONSE)

    again = claim()
    assert (again.stored, again.webhook_event) == (RESPONSE, "")


def test_claim_is_renewed_while_the_webhook_is_called(
    claim: Callable[[], Claim], table: JobTable, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_claim, "LEASE_S", 0.3)
    first = claim()
    first.begin_delivery(RESPONSE, "msg_1")
    clock.now += 60

    assert wait_until(lambda: lease_until(table) > NOW + 60)
    with pytest.raises(AlreadyRunning):
        claim()


def test_failure_is_not_stored_before_its_webhook_is_called(
    claim: Callable[[], Claim], clock: Clock
) -> None:
    killed = claim()
    killed.begin_delivery(FAILURE, "msg_1")
    killed.release()
    clock.now += held_claim.LEASE_S + 0.1

    assert claim().stored is None


def test_failed_job_runs_again(claim: Callable[[], Claim]) -> None:
    claim().end(FAILURE)

    assert claim().stored is None


def test_claim_that_is_only_released_lapses(claim: Callable[[], Claim], clock: Clock) -> None:
    claim().release()

    with pytest.raises(AlreadyRunning):
        claim()
    clock.now += held_claim.LEASE_S + 0.1
    assert claim().attempt is not None


@pytest.mark.parametrize("late_response", [FAILURE, {**RESPONSE, "id": "late"}], ids=["-", "+"])
def test_late_holder_leaves_the_response_of_the_next_alone(
    claim: Callable[[], Claim], clock: Clock, late_response: dict[str, Any]
) -> None:
    late = claim()
    clock.now += held_claim.LEASE_S + 0.1
    claim().end(RESPONSE)

    late.end(late_response)

    assert claim().stored == RESPONSE


@pytest.mark.parametrize("late_response", [FAILURE, {**RESPONSE, "id": "late"}], ids=["-", "+"])
def test_late_holder_leaves_the_claim_of_the_next_alone(
    claim: Callable[[], Claim], clock: Clock, late_response: dict[str, Any]
) -> None:
    late = claim()
    clock.now += held_claim.LEASE_S + 0.1
    following = claim()

    late.end(late_response)

    with pytest.raises(AlreadyRunning):
        claim()
    following.end(RESPONSE)
    assert claim().stored == RESPONSE


def test_late_success_is_logged(
    claim: Callable[[], Claim], clock: Clock, log: list[dict[str, Any]]
) -> None:
    late = claim()
    clock.now += held_claim.LEASE_S + 0.1
    claim()

    late.end(RESPONSE)

    assert [(line["event"], line["reason"]) for line in log] == [("jobs.failed", "ClaimLapsed")]


def test_success_is_stored_after_its_time_where_no_other_holds_the_job(
    claim: Callable[[], Claim], clock: Clock
) -> None:
    late = claim()
    clock.now += held_claim.LEASE_S + 0.1

    late.end(RESPONSE)

    assert claim().stored == RESPONSE


def test_response_is_kept_from_the_end_of_the_job_for_its_time(
    claim: Callable[[], Claim], jobs: Jobs, clock: Clock
) -> None:
    first = claim()
    clock.now += 3600
    first.end(RESPONSE)

    clock.now += 86_399
    assert claim().stored == RESPONSE
    clock.now += 1
    assert claim().stored is None


def test_claim_is_renewed_three_times_a_lease_until_it_is_released(
    claim: Callable[[], Claim], table: JobTable, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(held_claim, "LEASE_S", 0.3)
    held = claim()

    for _ in range(3):
        clock.now += 0.1
        assert wait_until(lambda: lease_until(table) == pytest.approx(clock.now + 0.3, abs=0.002))

    held.end(RESPONSE)
    assert claim().stored == RESPONSE


def test_renewal_goes_on_after_one_that_failed(
    claim: Callable[[], Claim],
    table: JobTable,
    monkeypatch: pytest.MonkeyPatch,
    clock: Clock,
    log: list[dict[str, Any]],
) -> None:
    monkeypatch.setattr(held_claim, "LEASE_S", 0.3)
    held = claim()
    (item,) = table.items()
    table.drop()
    assert wait_until(lambda: [line["event"] for line in log[:1]] == ["jobs.failed"])
    table.create()
    table.put(item)

    clock.now += 0.1

    assert wait_until(lambda: lease_until(table) == pytest.approx(clock.now + 0.3, abs=0.002))
    held.end(RESPONSE)
    assert claim().stored == RESPONSE


@pytest.mark.slow
def test_clock_that_is_fast_takes_over_the_job_of_a_dead_handler_alone(
    dynamodb: DynamoDBTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_claim, "LEASE_S", 3.0)
    fast_clock = Clock(NOW)
    fast_clock.now = NOW + 60
    with closing(Jobs(dynamodb.settings, Clock(NOW))) as jobs:
        first = jobs.claim(job())
        with closing(Jobs(dynamodb.settings, fast_clock)) as others:
            with pytest.raises(AlreadyRunning):
                others.claim(job())

            first.release()
            second = others.claim(job())
            second.end(RESPONSE)

            first.end(FAILURE)
            assert others.claim(job()).stored == RESPONSE


def test_request_to_cancel_is_seen_while_the_job_runs(
    claim: Callable[[], Claim], table: JobTable
) -> None:
    running = claim()
    cancel = moves.request_cancel({"status": "cancelled"}, "msg_1", NOW, 60)

    with closing(open_store(table.settings)) as store:
        assert store.change(record_id("known"), cancel, NOW).is_made

    assert wait_until(running.is_cancel_requested)


def test_store_that_fails_at_the_end_is_logged_and_the_claim_lapses(
    claim: Callable[[], Claim], table: JobTable, clock: Clock, log: list[dict[str, Any]]
) -> None:
    held = claim()
    (item,) = table.items()
    table.drop()

    held.end(RESPONSE)

    assert [line["event"] for line in log] == ["jobs.failed"]
    assert "the response was not stored" in log[0]["msg"]
    table.create()
    table.put(item)
    with pytest.raises(AlreadyRunning):
        claim()
    clock.now += held_claim.LEASE_S + 0.1
    assert claim().attempt is not None


@pytest.mark.parametrize("damage", [{"status": "LOST"}, {"data": "{"}, {"data": "{}"}], ids=str)
def test_job_with_a_damaged_record_runs_without_a_claim(
    claim: Callable[[], Claim],
    table: JobTable,
    damage: dict[str, Any],
    log: list[dict[str, Any]],
) -> None:
    claim().end(RESPONSE)
    (item,) = table.items()
    table.put({**item, **damage})

    assert claim() == Claim()

    assert [(line["event"], line["reason"]) for line in log] == [
        ("jobs.failed", "UnreadableRecord")
    ]


def test_request_without_an_id_is_on_record(claim: Callable[..., Claim], table: JobTable) -> None:
    claim(request_id="").end(RESPONSE)

    (item,) = table.items()
    assert item["status"] == "COMPLETED"


def test_record_is_found_by_the_id_and_files_have_the_mark_of_earlier_versions(
    dynamodb: DynamoDBTable,
) -> None:
    with closing(Jobs(dynamodb.settings)) as jobs:
        claim = jobs.claim(job())
        claim.release()

    (item,) = dynamodb.items()
    assert item["id"] == "id#known"
    assert claim.attempt is not None
    assert (
        claim.attempt.request == "12b8f87560f2afdfa0d0117a91df4aefb17a3838169e9fbba4f742b17e89838d"
    )


def test_files_of_another_store_are_marked_differently(
    dynamodb: DynamoDBTable, sqlite: SqliteTable
) -> None:
    with (
        closing(Jobs(dynamodb.settings)) as in_dynamodb,
        closing(Jobs(sqlite.settings)) as in_sqlite,
    ):
        held = [jobs.claim(job(request_id="other")) for jobs in (in_dynamodb, in_sqlite)]
        for one in held:
            one.release()

    assert len({one.attempt.request for one in held if one.attempt}) == 2


def test_claim_in_a_file_imports_no_boto3(sqlite: SqliteTable) -> None:
    code = f"""
import os, sys
import handler.app
from events.contract import caller_of, parse_request
from handler.jobs import Jobs
from handler.settings import Settings
request = {event({"1": node("A")}, request_id="light")!r}
claim = Jobs(Settings.from_env(os.environ)).claim(parse_request(request, caller_of(request)))
assert claim.attempt
claim.end({RESPONSE!r})
print({{"boto3", "aws_lambda_powertools.utilities.idempotency"}} & set(sys.modules))
"""
    printed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PROJECT,
        env=os.environ,
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert printed.strip() == "set()"
    assert len(sqlite.items()) == 1


def test_second_attempt_in_which_comfyui_dies_is_known_from_the_first(jobs: Jobs) -> None:
    first, other = jobs.claim(job()), jobs.claim(job("other"))
    is_second_death = [first.note_death(), other.note_death()]
    first.end(FAILURE)

    second = jobs.claim(job())
    is_second_death.append(second.note_death())
    for claim in (second, other):
        claim.end(FAILURE)

    assert is_second_death == [False, False, True]


def test_death_without_a_store_is_always_the_first() -> None:
    claim = Claim()

    assert [claim.note_death(), claim.note_death()] == [False, False]
