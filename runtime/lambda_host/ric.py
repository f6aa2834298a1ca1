"""One place for a runtime client: keeps AWS's runtime interface client (RIC) running in it.

A client that dies costs the invocation that it held, nothing else: the next one takes its place.
"""

import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from events.back_off import back_off_s
from handler.settings import PROJECT
from runtime.lambda_host.extensions import Extensions
from runtime.lambda_host.failures import (
    InvocationResult,
    exit_error,
    init_timeout_error,
    out_of_means,
)
from runtime.lambda_host.function import Function
from runtime.lambda_host.invocations import (
    Invocation,
    InvocationQueue,
    QueueConsumer,
    ResultFactory,
)
from runtime.process.child import Child

_LISTEN_BACKLOG = 16
_MAX_PAUSE_S = 30.0


class RuntimeClientSlot:
    """Runs one client after the other in a thread of its own, from `start` to `stop`.

    `init_failure` says why the latest client did not come up; None while one is up or starting.
    """

    def __init__(
        self,
        function: Function,
        queue: InvocationQueue,
        extensions: Extensions,
        on_line: Callable[[str], object],
        on_init_failure: Callable[[], object],
    ) -> None:
        self._function, self._queue, self._extensions = function, queue, extensions
        self._on_line, self._on_init_failure = on_line, on_init_failure
        self._lock = threading.Lock()
        self._ric: Child | None = None
        self._taker = QueueConsumer()
        self._is_stopped = False
        self._environment_failure: ResultFactory | None = None
        # A thread for each place: the kernel kills a child when the *thread* that started it
        # ends (see child.py), so a thread that serves one invocation must not start one.
        self._thread = threading.Thread(target=self._keep_running)
        self.init_failure: ResultFactory | None = None

    def start(self) -> None:
        self._thread.start()

    @property
    def is_started(self) -> bool:
        return self._thread.ident is not None

    @property
    def has_asked(self) -> bool:
        return self._taker.has_asked

    def stop(self, grace_s: float, why: ResultFactory | None = None) -> None:
        """SIGTERM, SIGKILL after `grace_s`; `why` is what its invocation is answered."""
        with self._lock:
            self._is_stopped = True
            self._environment_failure = why
            ric = self._ric
        if ric:
            ric.stop(grace_s)
        with self._queue.changed:
            self._queue.changed.notify_all()
        self._thread.join()

    def kill_if_holding(self, invocation: Invocation) -> None:
        with self._lock:
            # It may have died just now, and the next client is not to blame.
            ric = self._ric if self._taker.holding is invocation else None
        if ric:
            ric.stop(0)

    def _keep_running(self) -> None:
        failures = 0
        while not self._is_stopped:
            taker = self._run_client()
            # One that served and died is replaced at once. Others could die for ever: they get
            # longer and longer pauses, which an event cuts short.
            failures = 0 if taker.holding else failures + 1
            pause_s = back_off_s(failures, first_s=1.0, most_s=_MAX_PAUSE_S)
            if not self._queue.wait_until_used(pause_s, or_until=lambda: self._is_stopped):
                break

    def _run_client(self) -> QueueConsumer:
        taker = QueueConsumer()
        try:
            self._live(taker)
        except (OSError, RuntimeError) as error:
            # No process, thread or socket is to be had now; the next try comes after a pause.
            if self._ric:
                self._ric.stop(0)
            reason = out_of_means(error)
            self._settle(taker, lambda _: reason)
        return taker

    def _live(self, taker: QueueConsumer) -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=_LISTEN_BACKLOG) as listener:
            ric = self._start_client(listener, taker)
            if ric is None:
                return
            # Only now: http.server takes 30 ms to import, and the client is busy starting.
            from runtime.lambda_host.runtime_api import RuntimeApi  # noqa: PLC0415

            with RuntimeApi(
                listener, self._extensions, self._function, self._queue, taker, ric.catch_up
            ) as api:
                timeout_s = self._function.init_timeout_s
                if not self._queue.wait_until_asked(taker, timeout_s):
                    api.init_error = init_timeout_error(timeout_s)
                    ric.stop(0)
                status = ric.wait()
        self._settle(taker, partial(_why_it_ended, ric, status or 0, api.init_error))

    def _start_client(self, listener: socket.socket, taker: QueueConsumer) -> Child | None:
        host, port = listener.getsockname()

        def on_line(line: str) -> None:
            taker.note(line)
            self._on_line(line)

        with self._lock:
            if self._is_stopped:
                return None
            self._taker = taker
            self.init_failure = None
            self._ric = Child(
                [sys.executable, "-m", "awslambdaric", self._function.handler],
                cwd=PROJECT,
                env=self._function.client_environment(f"{host}:{port}"),
                on_line=on_line,
                on_death=lambda: self._queue.dismiss(taker),
            )
            return self._ric

    def _settle(self, taker: QueueConsumer, why: ResultFactory) -> None:
        held = self._queue.dismiss(taker)
        if held:
            held.finish((self._environment_failure or why)(held))
        if not taker.has_asked:
            self.init_failure = why
            self._on_init_failure()


def _why_it_ended(
    ric: Child, status: int, init_error: InvocationResult | None, invocation: Invocation
) -> InvocationResult:
    error = init_error or exit_error(status, invocation.request_id)
    return replace(error, log_tail=ric.tail())
