"""Waiting in the main thread so that no signal is missed.

Python runs signal handlers in the main thread. While another thread starts a thread or a process,
the kernel may hand it the signal (copy_process in its kernel/fork.c); a main thread that waits
without a limit sleeps on then, and the handler never runs.
"""

import queue
from collections.abc import Callable
from concurrent.futures import wait

from handler.daemon_future import in_background

_NOTICED_WITHIN_S = 0.2


def run_beside_signals(action: Callable[[], None]) -> None:
    """Run `action` in another thread, which lives as long as it; raises what it raises."""
    future = in_background(action)
    while not wait([future], _NOTICED_WITHIN_S).done:
        pass
    future.result()


def get_beside_signals(source: "queue.SimpleQueue[int]") -> int:
    """The next item, once there is one."""
    while True:
        try:
            return source.get(timeout=_NOTICED_WITHIN_S)
        except queue.Empty:
            continue
