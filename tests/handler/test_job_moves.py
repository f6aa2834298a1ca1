"""Which changes of a job record are allowed, whatever the store."""

import itertools
from dataclasses import replace
from typing import Any

import pytest

from handler.jobs import moves
from handler.jobs.moves import MOVES, Move
from handler.jobs.record import FREE, JobRecord, Lease, Progress, Status, WebhookState

NOW = 1_800_000_000.0
OWN = Lease("own", NOW + 15)
NEW_OWNER = Lease("new", NOW + 15)
RESPONSES = {
    Status.COMPLETED: {"status": "completed"},
    Status.FAILED: {"status": "failed"},
    Status.CANCELLED: {"status": "cancelled"},
}


def job(status: Status, **changes: Any) -> JobRecord:
    record = JobRecord(
        id="id#1",
        status=status,
        lease=FREE if status is Status.QUEUED else OWN,
        retained_until=int(NOW) + 100,
        request="request",
        created=NOW - 60,
        attempt=1,
        response=RESPONSES.get(status),
        is_cancel_requested=status is Status.CANCELLED,
    )
    return replace(record, **changes)


ALL_MOVES: dict[str, Move] = {
    "accept": moves.accept(job(Status.QUEUED, created=NOW), NOW),
    "claim": moves.claim(job(Status.RUNNING, lease=NEW_OWNER, created=NOW), NOW),
    "renew": moves.renew(Lease("own", NOW + 30)),
    "complete": moves.finish(job(Status.COMPLETED)),
    "fail": moves.finish(job(Status.FAILED)),
    "end as cancelled": moves.finish(job(Status.CANCELLED)),
    "requeue": moves.requeue("own"),
    "cancel": moves.request_cancel(RESPONSES[Status.CANCELLED], "msg_1", NOW, 100),
    "abandon": moves.abandon(RESPONSES[Status.FAILED], NOW, 100),
    "take delivery": moves.take_delivery(NEW_OWNER, NOW),
    "end delivery": moves.end_delivery("own", WebhookState.DELIVERED),
    "note death": moves.note_death("own"),
}
LEASES = (FREE, OWN, Lease("own", NOW - 1), Lease("other", NOW + 5), Lease("other", NOW - 5))
EVERY_RECORD = [
    None,
    *(
        job(
            status,
            lease=lease,
            must_rerun=is_flagged,
            is_cancel_requested=is_flagged,
            webhook_state=state,
            request=request,
        )
        for status, lease, is_flagged, state, request in itertools.product(
            Status,
            LEASES,
            (False, True),
            (WebhookState.NONE, WebhookState.PENDING),
            ("request", "another", ""),
        )
    ),
]


@pytest.mark.parametrize("name", ALL_MOVES)
def test_status_changes_only_as_the_table_allows(name: str) -> None:
    for before in EVERY_RECORD:
        after = ALL_MOVES[name](before)
        if after is not None and (before is None or after.status is not before.status):
            assert after.status in MOVES[before.status if before else None], (before, after)


@pytest.mark.parametrize("start", [None, *Status])
def test_every_change_of_the_table_is_made_by_some_move(start: Status | None) -> None:
    records = [r for r in EVERY_RECORD if (r.status if r else None) is start]

    reached = {
        after.status for before in records for move in ALL_MOVES.values() if (after := move(before))
    }

    assert reached - {start} == MOVES[start] - {start}


@pytest.mark.parametrize("name", ALL_MOVES)
@pytest.mark.parametrize("status", [Status.COMPLETED, Status.CANCELLED])
def test_answer_of_a_job_stays(name: str, status: Status) -> None:
    for state in WebhookState:
        before = job(status, lease=Lease("other", NOW - 1), webhook_state=state)
        after = ALL_MOVES[name](before)
        if after is not None:
            assert (after.status, after.response) == (before.status, before.response)


def test_handler_ends_its_job_once() -> None:
    for first in ("complete", "fail", "end as cancelled"):
        ended = ALL_MOVES[first](job(Status.RUNNING))
        for second in ("complete", "fail", "end as cancelled", "requeue"):
            assert ALL_MOVES[second](ended) is None


def test_claim_of_a_new_job_is_its_first_attempt() -> None:
    claimed = ALL_MOVES["claim"](None)

    assert claimed is not None
    assert (claimed.status, claimed.attempt, claimed.lease) == (Status.RUNNING, 1, NEW_OWNER)


def test_claim_of_a_queued_job_keeps_when_and_whence_it_came() -> None:
    claimed = ALL_MOVES["claim"](job(Status.QUEUED, source="http", attempt=0, deaths=1))

    assert claimed is not None
    assert (claimed.source, claimed.created, claimed.attempt) == ("http", NOW - 60, 1)
    assert claimed.deaths == 1


def test_claim_of_a_running_job_waits_for_the_end_of_its_lease() -> None:
    claim = ALL_MOVES["claim"]

    assert claim(job(Status.RUNNING)) is None
    assert claim(job(Status.RUNNING, lease=Lease("own", NOW))) is None
    claimed = claim(job(Status.RUNNING, lease=Lease("own", NOW - 0.001)))
    assert claimed is not None
    assert claimed.attempt == 2


def test_claim_takes_a_lapsed_lease_only_if_nothing_has_changed_since_it_was_seen() -> None:
    record = job(Status.RUNNING, lease=Lease("other", NOW + 15))
    lapsed = job(Status.RUNNING, lease=Lease("own", NOW - 1), version=7)

    assert moves.claim(record, NOW, seen_version=None)(lapsed) is None
    assert moves.claim(record, NOW, seen_version=6)(lapsed) is None
    assert moves.claim(record, NOW, seen_version=7)(lapsed) is not None


def test_claim_takes_a_request_to_cancel_over() -> None:
    lapsed = job(Status.RUNNING, lease=Lease("own", NOW - 1), is_cancel_requested=True)

    claimed = ALL_MOVES["claim"](lapsed)

    assert claimed is not None
    assert claimed.is_cancel_requested


@pytest.mark.parametrize("status", Status)
def test_id_of_another_request_is_neither_claimed_nor_accepted(status: Status) -> None:
    flags = {"must_rerun": True, "is_cancel_requested": False}
    other = job(status, request="another", lease=FREE, **flags)
    over = replace(other, retained_until=int(NOW))

    for name in ("claim", "accept"):
        assert ALL_MOVES[name](other) is None
        assert ALL_MOVES[name](over) is not None


def test_id_of_a_refused_request_is_free() -> None:
    for name in ("claim", "accept"):
        assert ALL_MOVES[name](job(Status.FAILED, request="")) is not None


def test_failed_job_and_one_without_an_answer_run_again() -> None:
    interrupted = job(Status.CANCELLED, is_cancel_requested=False)
    for record in (job(Status.FAILED), job(Status.COMPLETED, must_rerun=True), interrupted):
        claimed = ALL_MOVES["claim"](record)
        assert claimed is not None
        assert (claimed.attempt, claimed.created, claimed.response) == (2, NOW, None)


def test_renewal_keeps_what_it_does_not_know() -> None:
    progress = Progress(percentage=50.0)
    before = job(Status.RUNNING, progress=progress, outputs=({"a": 1},), is_cancel_requested=True)

    assert ALL_MOVES["renew"](before) == replace(before, lease=Lease("own", NOW + 30))


@pytest.mark.parametrize(
    "late",
    [
        moves.renew(Lease("late", NOW + 99)),
        moves.finish(job(Status.COMPLETED, lease=Lease("late", NOW))),
        moves.requeue("late"),
        moves.note_death("late"),
        moves.end_delivery("late", WebhookState.DELIVERED),
    ],
)
def test_late_owner_changes_nothing(late: Move) -> None:
    for status in Status:
        if status is not Status.QUEUED:
            assert late(job(status)) is None


def test_late_success_is_kept_where_the_job_was_given_up() -> None:
    late = moves.finish(job(Status.COMPLETED, lease=Lease("late", NOW)))
    late_failure = moves.finish(job(Status.FAILED, lease=Lease("late", NOW)))

    assert late(job(Status.QUEUED)) is not None
    assert late_failure(job(Status.QUEUED)) is None
    assert late(None) is not None


def test_requeued_job_is_free_at_once() -> None:
    queued = ALL_MOVES["requeue"](job(Status.RUNNING, progress=Progress(percentage=9.0)))

    assert queued is not None
    assert (queued.status, queued.lease, queued.progress) == (Status.QUEUED, FREE, None)
    assert ALL_MOVES["claim"](queued) is not None


def test_waiting_job_is_cancelled_at_once_and_its_webhook_is_to_be_called() -> None:
    cancelled = ALL_MOVES["cancel"](job(Status.QUEUED))

    assert cancelled is not None
    assert cancelled.status is Status.CANCELLED
    assert cancelled.response == RESPONSES[Status.CANCELLED]
    assert (cancelled.webhook, cancelled.webhook_state) == ("msg_1", WebhookState.PENDING)
    assert ALL_MOVES["take delivery"](cancelled) is not None


def test_running_job_is_asked_once_to_end() -> None:
    asked = ALL_MOVES["cancel"](job(Status.RUNNING))

    assert asked == job(Status.RUNNING, is_cancel_requested=True)
    assert ALL_MOVES["cancel"](asked) is None


def test_job_whose_handler_is_gone_is_cancelled_at_once() -> None:
    cancelled = ALL_MOVES["cancel"](job(Status.RUNNING, lease=Lease("own", NOW - 1)))

    assert cancelled is not None
    assert cancelled.status is Status.CANCELLED
    # A handler that lives after all cannot change that.
    assert ALL_MOVES["complete"](cancelled) is None


def test_job_that_nothing_will_run_fails_and_may_be_sent_again() -> None:
    abandon = ALL_MOVES["abandon"]

    assert abandon(job(Status.RUNNING)) is None
    for record in (job(Status.QUEUED), job(Status.RUNNING, lease=Lease("own", NOW - 1))):
        failed = abandon(record)
        assert failed is not None
        assert failed.status is Status.FAILED
        assert ALL_MOVES["accept"](failed) is not None


@pytest.mark.parametrize("status", [s for s in Status if s.is_final])
def test_job_that_has_ended_is_not_cancelled(status: Status) -> None:
    assert ALL_MOVES["cancel"](job(status)) is None


@pytest.mark.parametrize(
    ("state", "is_open"),
    [
        (WebhookState.NONE, False),
        (WebhookState.PENDING, True),
        (WebhookState.DELIVERED, False),
        (WebhookState.FAILED, True),
    ],
)
def test_delivery_that_is_open_is_taken_over_once_its_lease_has_lapsed(
    state: WebhookState, is_open: bool
) -> None:
    take = ALL_MOVES["take delivery"]
    record = job(Status.COMPLETED, webhook_state=state)

    assert take(record) is None
    assert (take(replace(record, lease=Lease("own", NOW - 1))) is not None) == is_open
