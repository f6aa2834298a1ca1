"""Invokes the handler: keeps a runtime client, gives it the events, and holds it to its time.

A client that dies, hangs or is too slow costs the invocation that it had, nothing else: the next
one starts a new client.
"""

import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Self

from handler.settings import PROJECT
from runtime.child import Child
from runtime.lambda_host.invocations import (
    Invocation,
    InvocationQueue,
    InvocationResult,
    Taker,
    failure,
)
from runtime.lambda_host.ric import (
    exit_error,
    function_arn,
    ric_command,
    ric_environment,
    timeout_error,
)

INIT_TIMEOUT_S = 60.0
# What Lambda leaves a runtime between SIGTERM and SIGKILL when an extension is registered.
_STOP_GRACE_S = 0.6
_LISTEN_BACKLOG = 16


class LambdaHost:
    """Runs `handler` (MODULE.FUNCTION) in AWS's runtime client while it is entered.

    The client starts at once, before the first event. `environ` is its whole environment but for
    Lambda's own variables; `on_line` gets every line of its output, in a thread of ours.
    """

    def __init__(
        self, handler: str, *, environ: Mapping[str, str], on_line: Callable[[str], object]
    ) -> None:
        self._handler, self._environ, self._on_line = handler, environ, on_line
        self._queue = InvocationQueue()
        self._lock = threading.Lock()
        self._ric: Child | None = None
        self._taker = Taker()
        self._is_closed = False
        self._supervisor = threading.Thread(target=self._supervise)

    def __enter__(self) -> Self:
        self._supervisor.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._is_closed = True
        self._queue.close()
        if self._ric:
            self._ric.stop(_STOP_GRACE_S)
        self._supervisor.join()

    def invoke(
        self, event: bytes, *, timeout_s: float, request_id: str | None = None
    ) -> InvocationResult:
        """Run one event and wait for its result, `timeout_s` seconds after the client took it."""
        invocation = Invocation(event, timeout_s)
        invocation.request_id = request_id or invocation.request_id
        self._queue.put(invocation)
        # No limit here: the client that is on its way, or its failure, ends this wait.
        invocation.taken.wait()
        if not invocation.finished.wait(timeout_s) and invocation.finish(
            timeout_error(timeout_s, invocation.request_id)
        ):
            self._kill_ric_of(invocation)
        assert invocation.result is not None
        return invocation.result

    def _supervise(self) -> None:
        # One thread for all clients: the kernel kills a child when the *thread* that started it
        # ends (see child.py), so a thread that serves one invocation must not start one.
        try:
            self._run_ric()
            while self._queue.wait_until_used():
                self._run_ric()
        finally:
            self._queue.close()

    def _run_ric(self) -> None:
        taker = Taker()
        with socket.create_server(("127.0.0.1", 0), backlog=_LISTEN_BACKLOG) as listener:
            ric = self._start_ric(listener, taker)
            if ric is None:
                return
            # Only now: http.server takes 30 ms to import, and the client is busy starting.
            from runtime.lambda_host.runtime_api import RuntimeApi  # noqa: PLC0415

            arn = function_arn(self._environ)
            with RuntimeApi(listener, self._queue, taker, arn) as api:
                if not self._queue.wait_until_asked(taker, INIT_TIMEOUT_S):
                    message = f"Init phase timed out after {INIT_TIMEOUT_S:.2f} seconds"
                    api.init_error = failure("Sandbox.Timedout", message)
                    ric.stop(0)
                status = ric.wait()
            self._settle(taker, partial(_why_it_ended, ric, status, api.init_error))

    def _settle(self, taker: Taker, why: Callable[[Invocation], InvocationResult]) -> None:
        held = self._queue.dismiss(taker)
        if held:
            held.finish(why(held))
        # After a failed init another client would fail too. Else it takes what still waits.
        if not taker.has_asked:
            self._queue.fail_waiting(why)

    def _start_ric(self, listener: socket.socket, taker: Taker) -> Child | None:
        host, port = listener.getsockname()
        with self._lock:
            if self._is_closed:
                return None
            self._ric = Child(
                ric_command(self._handler),
                cwd=PROJECT,
                env=ric_environment(self._environ, self._handler, f"{host}:{port}"),
                on_line=self._on_line,
                on_exit=lambda: self._queue.dismiss(taker),
            )
            self._taker = taker
            return self._ric

    def _kill_ric_of(self, invocation: Invocation) -> None:
        with self._lock:
            # It may have died just now, and the next client is not to blame.
            ric = self._ric if self._taker.holding is invocation else None
        if ric:
            ric.stop(0)


def _why_it_ended(
    ric: Child, status: int | None, init_error: InvocationResult | None, invocation: Invocation
) -> InvocationResult:
    error = init_error or exit_error(status or 0, invocation.request_id)
    return replace(error, log_tail=ric.tail())
