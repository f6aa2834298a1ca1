"""The states of a worker and the moves between them. `ready` and `inactive` are the documented two.

starting ─▶ ready ─▶ inactive ─▶ starting      ready ─▶ starting: ComfyUI died
starting ─▶ inactive: the start failed, the next event tries again
starting, ready ─▶ failed: too many starts failed, or ComfyUI died too often without a job
any ─▶ draining ─▶ stopped
"""

from enum import IntEnum, StrEnum

from runtime.errors import LambdaComfyUIError


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
    State.READY: frozenset({State.STARTING, State.INACTIVE, State.FAILED, State.DRAINING}),
    State.INACTIVE: frozenset({State.STARTING, State.DRAINING}),
    State.FAILED: frozenset({State.DRAINING}),
    State.DRAINING: frozenset({State.STOPPED}),
    State.STOPPED: frozenset(),
}


class Depth(IntEnum):
    """How deep an idle worker sleeps; each includes the ones before it."""

    AWAKE = 0
    FREE = 1  # the models are out of the GPU's memory
    STOP = 2  # ComfyUI is gone, a prepared Python stays
    EXIT = 3  # nothing stays


# By the names that people say, as in IDLE_FREE_AFTER.
DEPTHS = {depth.name.lower(): depth for depth in (Depth.FREE, Depth.STOP, Depth.EXIT)}


class IllegalMove(LambdaComfyUIError):
    """A move that the table does not have; the message names both states."""


def check_move(old: State, new: State) -> None:
    if new not in MOVES[old]:
        raise IllegalMove(f"a worker cannot go from {old} to {new}")
