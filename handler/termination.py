"""Calls an action when this process is asked to end with SIGTERM, and then ends the process.

Lambda and our host send SIGTERM to a handler some moments before SIGKILL:
https://docs.aws.amazon.com/lambda/latest/dg/lambda-runtime-environment.html#runtimes-lifecycle-shutdown
Python runs signal handlers in the main thread, which may be in a call of C that does not return, or
hold a lock that the action needs. So a thread waits for the byte that the interpreter writes at
each signal: https://docs.python.org/3/library/signal.html#signal.set_wakeup_fd
"""

import os
import signal
import threading
from collections.abc import Callable

# The exit status that shells give a process which ended by SIGTERM.
EXIT_STATUS = 128 + signal.SIGTERM
_actions: list[Callable[[], object]] = []


def at_termination(action: Callable[[], object]) -> None:
    """Call `action` at SIGTERM, once, in a thread; the latest action counts.

    It must end within a fraction of a second: SIGKILL follows. Nothing happens outside of the main
    thread, and where the process handles SIGTERM itself.
    """
    if not _actions:
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            return
        _watch()
    _actions[:] = [action]


def _watch() -> None:
    reader, writer = os.pipe()
    # The interpreter requires it.
    os.set_blocking(writer, False)
    threading.Thread(target=_wait, args=(reader,), name="termination", daemon=True).start()
    signal.set_wakeup_fd(writer)
    signal.signal(signal.SIGTERM, _leave_to_the_thread)


def _leave_to_the_thread(*_: object) -> None: ...


def _wait(reader: int) -> None:
    # The bytes are the numbers of signals.
    while signal.SIGTERM not in os.read(reader, 64):
        pass
    try:
        for action in _actions:
            action()
    finally:
        os._exit(EXIT_STATUS)
