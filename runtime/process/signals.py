"""Signals that end a command: what they call, and how the main thread waits without missing one.

Python runs signal handlers in the main thread. While another thread starts a thread or a process,
the kernel may deliver the signal to that thread (copy_process in its kernel/fork.c). A main thread
that waits without a limit then goes on waiting, and the handler never runs.
"""

import queue
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager

from handler.daemon_future import in_background

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_NOTICED_WITHIN_S = 0.2


@contextmanager
def on_stop_signal(action: Callable[[int], object]) -> Iterator[None]:
    """Call `action` with the number of the first SIGINT or SIGTERM inside the block.

    It runs in the main thread, between two steps of the code there. A second signal ends the
    process at once.
    """

    def obey(number: int, _: object) -> None:
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        action(number)

    previous = {number: signal.signal(number, obey) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


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
