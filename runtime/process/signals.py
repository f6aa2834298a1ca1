"""Waits in the main thread without missing a signal.

Python runs signal handlers in the main thread. While another thread starts a thread or a process,
the kernel may deliver the signal to that thread (copy_process in its kernel/fork.c). A main thread
that waits without a limit then goes on waiting, and the handler never runs.
"""

import queue
from collections.abc import Callable
from concurrent.futures import wait

from handler.daemon_future import in_background

_NOTICED_WITHIN_S = 0.2


def run_beside_signals(action: Callable[[], None]) -> None:
    """Run `action` in another thread until it returns; raises what it raises."""
    future = in_background(action)
    while not wait([future], _NOTICED_WITHIN_S).done:
        pass
    future.result()


def get_beside_signals(source: "queue.SimpleQueue[int]") -> int:
    """Wait for the next item and return it."""
    while True:
        try:
            return source.get(timeout=_NOTICED_WITHIN_S)
        except queue.Empty:
            continue
