"""One execution environment: extensions and runtime clients, from init to shutdown.

The order is that of Managed Instances:
https://docs.aws.amazon.com/lambda/latest/dg/lambda-managed-instances-execution-environment.html
"""

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from handler.settings import PROJECT
from runtime.lambda_host.extensions import Extensions
from runtime.lambda_host.failures import (
    InvocationResult,
    failure,
    init_timeout_error,
)
from runtime.lambda_host.function import Function
from runtime.lambda_host.invocations import Invocation, InvocationQueue, ResultFactory
from runtime.lambda_host.ric import RuntimeClientSlot
from runtime.process.child import Child, describe_exit

# What Lambda leaves a runtime between SIGTERM and SIGKILL, of 2 s for everything.
RIC_STOP_GRACE_S = 0.6
FAILURE_GRACE_S = 2.0
_LISTEN_BACKLOG = 16


class Environment:
    """`run` lives through it, in a thread that must not end before its children do.

    `failure` tells why it did not come up, or crashed; None if it was stopped.
    """

    def __init__(
        self,
        function: Function,
        queue: InvocationQueue,
        *,
        on_line: Callable[[str], object],
        on_ready: Callable[[float], object],
    ) -> None:
        self._function, self._queue = function, queue
        self._on_line, self._on_ready = on_line, on_ready
        self._changed = queue.changed
        self._extensions = Extensions(self._changed, len(function.extensions))
        self._processes: list[Child] = []
        self._stop_at: float | None = None
        self._is_ending = False
        self.was_ready = False
        self.failure: ResultFactory | None = None
        self._places = [
            RuntimeClientSlot(function, queue, self._extensions, on_line, self._note_init_failure)
            for _ in range(function.concurrency)
        ]

    @property
    def is_given_up(self) -> bool:
        """Whether an extension has reported an error."""
        return self._extensions.error is not None

    def run(self) -> None:
        """Init, serve until it is stopped or crashes, shut down."""
        with contextlib.ExitStack() as stack:
            try:
                if self._init(stack):
                    self._queue.open_gate()
                    self._wait(lambda: False)
            finally:
                self._shut_down()

    def stop(self, grace_s: float) -> None:
        """Make `run` shut down: everything is killed after `grace_s` seconds."""
        with self._changed:
            self._stop_at = time.monotonic() + grace_s
            self._changed.notify_all()

    def kill_holder_of(self, invocation: Invocation) -> None:
        for place in self._places:
            place.kill_if_holding(invocation)

    def _init(self, stack: contextlib.ExitStack) -> bool:
        began = time.monotonic()
        give_up = began + self._function.init_timeout_s
        if self._function.extensions:
            self._start_extensions(stack)
            # The runtime starts when they have registered, not when they are ready: so both
            # get ready at the same time.
            if not self._wait(lambda: self._extensions.are_registered, give_up):
                return False
        for place in self._places:
            place.start()
        if not self._wait(self._is_ready, give_up):
            return False
        self._extensions.close_registration()
        self.was_ready = True
        self._on_ready(time.monotonic() - began)
        return True

    def _is_ready(self) -> bool:
        return self._extensions.are_ready and any(place.has_asked for place in self._places)

    def _wait(self, condition: Callable[[], bool], give_up: float | None = None) -> bool:
        """True once `condition` holds; False when the environment must end instead."""
        timeout_s = None if give_up is None else give_up - time.monotonic()
        with self._changed:
            self._changed.wait_for(lambda: condition() or self._must_end(), timeout_s)
            if self._must_end():
                return False
            if not condition():
                error = init_timeout_error(self._function.init_timeout_s)
                self.failure = lambda _: error
            return self.failure is None

    def _must_end(self) -> bool:
        if self._extensions.error and not self.failure:
            error = failure(self._extensions.error, "an extension reported an error")
            self.failure = lambda _: error
        return self._stop_at is not None or self.failure is not None

    def _start_extensions(self, stack: contextlib.ExitStack) -> None:
        from runtime.lambda_host.extensions_api import ExtensionsApi  # noqa: PLC0415

        listener = socket.create_server(("127.0.0.1", 0), backlog=_LISTEN_BACKLOG)
        stack.enter_context(ExtensionsApi(listener, self._extensions, self._function))
        host, port = listener.getsockname()
        environ = self._function.extension_environment(f"{host}:{port}")
        for command in self._function.extensions:
            process = Child(
                command,
                cwd=PROJECT,
                env=environ,
                on_line=self._on_line,
                # If we are killed: it has a ComfyUI to stop.
                dies_with=signal.SIGTERM,
            )
            self._processes.append(process)
            threading.Thread(target=self._watch_extension, args=(process,), daemon=True).start()

    def _watch_extension(self, process: Child) -> None:
        status = process.wait() or 0
        with self._changed:
            if not self._is_ending and not self.failure:
                ended = f"extension exited with {describe_exit(status)}"
                self.failure = partial(_crash, ended, process.tail())
                self._changed.notify_all()

    def _note_init_failure(self) -> None:
        with self._changed:
            reasons = [place.init_failure for place in self._places]
            if all(reasons) and not self.failure:
                self.failure = reasons[-1]
            self._changed.notify_all()

    def _shut_down(self) -> None:
        with self._changed:
            self._is_ending = True
            reason = "failure" if self.failure else "spindown"
            until = self._stop_at or time.monotonic() + FAILURE_GRACE_S
        self._queue.shut_gate()
        self._stop_places(min(RIC_STOP_GRACE_S, max(until - time.monotonic(), 0)))
        with self._changed:
            can_be_told = self._extensions.await_shutdown
        left_s = max(until - time.monotonic(), 0)
        self._extensions.shut_down(round((time.time() + left_s) * 1000), reason)
        for process in self._processes:
            if can_be_told:
                process.wait(max(until - time.monotonic(), 0))
            # One that has not got as far as to listen understands SIGTERM only.
            process.stop(max(until - time.monotonic(), 0))
        self._extensions.end()

    def _stop_places(self, grace_s: float) -> None:
        started = [place for place in self._places if place.is_started]
        stopping = [
            threading.Thread(target=place.stop, args=(grace_s, self.failure)) for place in started
        ]
        for place, thread in zip(started, stopping, strict=True):
            try:
                thread.start()
            except RuntimeError:
                # No thread is to be had: one after the other, then.
                place.stop(grace_s, self.failure)
        for thread in stopping:
            if thread.ident is not None:
                thread.join()


def _crash(ended: str, tail: tuple[str, ...], invocation: Invocation) -> InvocationResult:
    message = f"RequestId: {invocation.request_id} Error: {ended}"
    return replace(failure("Extension.Crash", message), log_tail=tail)
