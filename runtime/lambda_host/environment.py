"""One execution environment: extensions and runtime clients, from init to shutdown.

The order is that of Managed Instances:
https://docs.aws.amazon.com/lambda/latest/dg/lambda-managed-instances-execution-environment.html
Whether another environment replaces one that has failed is decided in host.py.
"""

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable

from handler.settings import PROJECT
from runtime.lambda_host.extensions import Extensions
from runtime.lambda_host.failures import (
    Failure,
    extension_crash,
    init_timeout_failure,
    start_failure,
)
from runtime.lambda_host.function import Function
from runtime.lambda_host.invocations import Gate, Invocation, InvocationQueue
from runtime.lambda_host.runtime_client import CLIENT_STOP_GRACE_S, RuntimeClientSlot
from runtime.process.child import Child

FAILURE_GRACE_S = 2.0
_LISTEN_BACKLOG = 16


class ExecutionEnvironment:
    """`run` is its whole life, in a thread that must not end before its children do.

    `was_ready`: its init succeeded. `has_given_up`: an extension has reported an error.
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
        self._changed, self._gate = queue.changed, Gate()
        self._extensions = Extensions(
            self._changed, len(function.extensions), on_error=self._note_extension_error
        )
        self._processes: list[Child] = []
        self._stop_at: float | None = None
        self._is_ending = False
        self._failure: Failure | None = None
        self.was_ready = False
        self.has_given_up = False
        self._slots = [
            RuntimeClientSlot(
                function, queue, self._gate, self._extensions, on_line, self._note_init_failure
            )
            for _ in range(function.concurrency)
        ]

    def run(self) -> Failure | None:
        """Init, serve until it is stopped or fails, shut down.

        Returns why it did not come up or crashed; None if it was stopped.
        """
        try:
            with contextlib.ExitStack() as stack:
                try:
                    if self._init(stack):
                        self._queue.open_gate(self._gate)
                        self._wait_for_end()
                finally:
                    self._shut_down()
        except (OSError, RuntimeError) as error:
            return start_failure(error)
        return self._failure

    def stop(self, grace_s: float) -> None:
        """Make `run` shut down: everything is killed after `grace_s` seconds."""
        with self._changed:
            self._stop_at = time.monotonic() + grace_s
            self._changed.notify_all()

    def kill_client_of(self, invocation: Invocation) -> None:
        for slot in self._slots:
            slot.kill_if_running(invocation)

    def _init(self, stack: contextlib.ExitStack) -> bool:
        """Start everything; False when the environment must end instead of serving."""
        began = time.monotonic()
        give_up = began + self._function.init_timeout_s
        if self._function.extensions:
            self._start_extensions(stack)
            # The clients start when the extensions have registered, not when they are ready: so
            # both get ready at the same time.
            if not self._wait_in_init(lambda: self._extensions.are_registered, give_up):
                return False
        for slot in self._slots:
            slot.start()
        if not self._wait_in_init(self._is_ready, give_up):
            return False
        self._extensions.close_registration()
        self.was_ready = True
        self._on_ready(time.monotonic() - began)
        return True

    def _is_ready(self) -> bool:
        return self._extensions.are_ready and any(slot.has_asked for slot in self._slots)

    def _wait_in_init(self, condition: Callable[[], bool], give_up: float) -> bool:
        """Wait for `condition`; False when the environment must end, also for lack of time."""
        timeout_s = give_up - time.monotonic()
        with self._changed:
            if not self._changed.wait_for(lambda: condition() or self._must_end(), timeout_s):
                self._fail(init_timeout_failure(self._function.init_timeout_s))
            return not self._must_end()

    def _wait_for_end(self) -> None:
        with self._changed:
            self._changed.wait_for(self._must_end)

    def _must_end(self) -> bool:
        return self._stop_at is not None or self._failure is not None

    def _fail(self, failure: Failure) -> None:
        """Make `run` shut down for this reason. The first one counts, and none after a stop."""
        with self._changed:
            if not self._is_ending and self._failure is None:
                self._failure = failure
                self._changed.notify_all()

    def _start_extensions(self, stack: contextlib.ExitStack) -> None:
        from runtime.lambda_host.extensions_api import ExtensionsApiServer  # noqa: PLC0415 - 30 ms

        listener = socket.create_server(("127.0.0.1", 0), backlog=_LISTEN_BACKLOG)
        stack.enter_context(ExtensionsApiServer(listener, self._extensions, self._function))
        host, port = listener.getsockname()
        environ = self._function.extension_environment(f"{host}:{port}")
        for command in self._function.extensions:
            process = Child(
                command,
                cwd=PROJECT,
                env=environ,
                on_line=self._on_line,
                # If this process is killed: the extension has a ComfyUI to stop.
                dies_with=signal.SIGTERM,
            )
            self._processes.append(process)
            threading.Thread(target=self._watch_extension, args=(process,), daemon=True).start()

    def _watch_extension(self, process: Child) -> None:
        status = process.wait() or 0
        self._fail(extension_crash(status, process.tail()))

    def _note_extension_error(self, error_type: str, message: str) -> None:
        self.has_given_up = True
        self._fail(Failure(error_type=error_type, message=message))

    def _note_init_failure(self) -> None:
        """A client did not come up. If none did, the environment has failed."""
        with self._changed:
            failures = [slot.init_failure for slot in self._slots if slot.init_failure]
            if len(failures) == len(self._slots):
                self._fail(failures[-1])
            self._changed.notify_all()

    def _shut_down(self) -> None:
        with self._changed:
            self._is_ending = True
            reason = "failure" if self._failure else "spindown"
            until = self._stop_at or time.monotonic() + FAILURE_GRACE_S
        self._queue.close_gate(self._gate)
        self._stop_slots(min(CLIENT_STOP_GRACE_S, max(until - time.monotonic(), 0)))
        with self._changed:
            await_shutdown = self._extensions.await_shutdown
        left_s = max(until - time.monotonic(), 0)
        self._extensions.shut_down(round((time.time() + left_s) * 1000), reason)
        for process in self._processes:
            if await_shutdown:
                process.wait(max(until - time.monotonic(), 0))
            # One that does not wait for the SHUTDOWN event is stopped by SIGTERM.
            process.stop(max(until - time.monotonic(), 0))
        self._extensions.end()

    def _stop_slots(self, grace_s: float) -> None:
        started = [slot for slot in self._slots if slot.is_started]
        threads = [
            threading.Thread(target=slot.stop, args=(grace_s, self._failure)) for slot in started
        ]
        for slot, thread in zip(started, threads, strict=True):
            try:
                thread.start()
            except RuntimeError:
                # The machine refused a thread: stop one after the other.
                slot.stop(grace_s, self._failure)
        for thread in threads:
            if thread.ident is not None:
                thread.join()
