"""The states of a worker and the moves between them. `ready` and `inactive` are the documented two.

starting ─▶ ready ⇄ inactive          starting ─▶ inactive: the start failed, the next event tries
any ─▶ draining ─▶ stopped            starting ─▶ failed: too many starts in a row did
"""

from enum import StrEnum


class State(StrEnum):
    """What a worker can be."""

    STARTING = "starting"
    READY = "ready"
    INACTIVE = "inactive"
    FAILED = "failed"
    DRAINING = "draining"
    STOPPED = "stopped"


MOVES: dict[State, frozenset[State]] = {
    State.STARTING: frozenset({State.READY, State.INACTIVE, State.FAILED, State.DRAINING}),
    State.READY: frozenset({State.STARTING, State.INACTIVE, State.DRAINING}),
    State.INACTIVE: frozenset({State.STARTING, State.DRAINING}),
    State.FAILED: frozenset({State.DRAINING}),
    State.DRAINING: frozenset({State.STOPPED}),
    State.STOPPED: frozenset(),
}


class IllegalMove(RuntimeError):
    """A move that the table does not have; the message names both states."""


def check_move(old: State, new: State) -> None:
    if new not in MOVES[old]:
        raise IllegalMove(f"a worker cannot go from {old} to {new}")
