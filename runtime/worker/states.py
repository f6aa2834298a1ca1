"""The moves of a worker from state to state; the states are in handler/worker_protocol.py.

starting ─▶ ready ─▶ inactive ─▶ starting      ready ─▶ starting: ComfyUI died, or the
    machine made a job fail
starting, ready ─▶ benchmarking ─▶ ready      benchmarking ─▶ starting: ComfyUI died
starting ─▶ inactive: the start failed, the next event tries again
starting, ready ─▶ failed: too many starts failed, or ComfyUI died too often without a job, or the
    machine is unfit for jobs
any ─▶ draining ─▶ stopped
"""

from handler.worker_protocol import State
from runtime.errors import LambdaComfyUIError

MOVES: dict[State, frozenset[State]] = {
    State.STARTING: frozenset(
        {State.BENCHMARKING, State.READY, State.INACTIVE, State.FAILED, State.DRAINING}
    ),
    State.BENCHMARKING: frozenset({State.STARTING, State.READY, State.FAILED, State.DRAINING}),
    State.READY: frozenset(
        {State.STARTING, State.BENCHMARKING, State.INACTIVE, State.FAILED, State.DRAINING}
    ),
    State.INACTIVE: frozenset({State.STARTING, State.DRAINING}),
    State.FAILED: frozenset({State.DRAINING}),
    State.DRAINING: frozenset({State.STOPPED}),
    State.STOPPED: frozenset(),
}


class IllegalMove(LambdaComfyUIError):
    """A move that the table does not have; the message names both states."""


def check_move(old: State, new: State) -> None:
    """Raise IllegalMove unless the table has the move from `old` to `new`."""
    if new not in MOVES[old]:
        raise IllegalMove(f"a worker cannot go from {old} to {new}")
