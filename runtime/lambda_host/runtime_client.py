"""Keeps one of AWS's runtime interface clients (awslambdaric) running.

A client that dies costs the invocation that it ran, and no other: another client replaces it.
"""

import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import replace

from events.back_off import back_off_s
from handler.settings import PROJECT
from runtime.lambda_host.extensions import Extensions
from runtime.lambda_host.failures import (
    Failure,
    exit_failure,
    init_timeout_failure,
    start_failure,
)
from runtime.lambda_host.function import Function
from runtime.lambda_host.invocations import Gate, Invocation, InvocationQueue, QueueConsumer
from runtime.process.child import Child

# What Lambda leaves a runtime between SIGTERM and SIGKILL, of 2 s for everything. The handler ends
# the claim of its job in it (handler/termination.py).
CLIENT_STOP_GRACE_S = 0.6
_LISTEN_BACKLOG = 16
_MAX_PAUSE_S = 30.0


class RuntimeClientSlot:
    """Runs one client after the other in a thread of its own, from `start` to `stop`.

    `init_failure` is why the latest client did not come up; None while one is up or starting.
    """

    def __init__(
        self,
        function: Function,
        queue: InvocationQueue,
        gate: Gate,
        extensions: Extensions,
        on_line: Callable[[str], object],
        on_init_failure: Callable[[], object],
    ) -> None:
        self._function, self._queue, self._extensions = function, queue, extensions
        self._on_line, self._on_init_failure = on_line, on_init_failure
        self._gate = gate
        self._lock = threading.Lock()
        self._client: Child | None = None
        self._consumer = QueueConsumer(gate)
        self._is_stopped = False
        self._environment_failure: Failure | None = None
        # A thread for each slot: the kernel kills a child when the *thread* that started it
        # ends (see child.py), so a thread that serves one invocation must not start one.
        self._thread = threading.Thread(target=self._keep_running)
        self.init_failure: Failure | None = None

    def start(self) -> None:
        self._thread.start()

    @property
    def is_started(self) -> bool:
        return self._thread.ident is not None

    @property
    def has_asked(self) -> bool:
        return self._consumer.has_asked

    def stop(self, grace_s: float, environment_failure: Failure | None = None) -> None:
        """Send SIGTERM, and SIGKILL after `grace_s` seconds.

        An invocation that runs fails as the environment did, else for the end of its client.
        """
        with self._lock:
            self._is_stopped = True
            self._environment_failure = environment_failure
            client = self._client
        if client:
            client.stop(grace_s)
        with self._queue.changed:
            self._queue.changed.notify_all()
        self._thread.join()

    def kill_if_running(self, invocation: Invocation) -> None:
        """Kill the client if it runs this invocation."""
        with self._lock:
            # Another client may have replaced it by now: that one must go on.
            client = self._client if self._consumer.invocation is invocation else None
        if client:
            client.stop(CLIENT_STOP_GRACE_S)

    def _keep_running(self) -> None:
        failures = 0
        while not self._is_stopped:
            consumer = QueueConsumer(self._gate)
            if failure := self._run_client(consumer):
                self._settle(consumer, failure)
            # A client that served and died is replaced at once. One that never served may die
            # each time: the pauses get longer, and an event ends a pause.
            failures = 0 if consumer.invocation else failures + 1
            pause_s = back_off_s(failures, first_s=1.0, most_s=_MAX_PAUSE_S)
            if not self._queue.wait_until_needed(pause_s, or_until=lambda: self._is_stopped):
                break

    def _run_client(self, consumer: QueueConsumer) -> Failure | None:
        """Run one client. Returns why it ended; None if the slot was stopped before its start."""
        try:
            with socket.create_server(("127.0.0.1", 0), backlog=_LISTEN_BACKLOG) as listener:
                client = self._start_client(listener, consumer)
                return self._serve(client, listener, consumer) if client else None
        except (OSError, RuntimeError) as error:
            # The machine refused a process, thread or socket; the next try comes after a pause.
            if self._client:
                self._client.stop(0)
            return start_failure(error)

    def _start_client(self, listener: socket.socket, consumer: QueueConsumer) -> Child | None:
        host, port = listener.getsockname()

        def on_line(line: str) -> None:
            consumer.note(line)
            self._on_line(line)

        with self._lock:
            if self._is_stopped:
                return None
            self._consumer = consumer
            self.init_failure = None
            self._client = Child(
                [sys.executable, "-m", "awslambdaric", self._function.handler],
                cwd=PROJECT,
                env=self._function.client_environment(f"{host}:{port}"),
                on_line=on_line,
                on_death=lambda: self._queue.retire(consumer),
            )
            return self._client

    def _serve(self, client: Child, listener: socket.socket, consumer: QueueConsumer) -> Failure:
        # Only now: http.server takes 30 ms to import, and the client is busy starting.
        from runtime.lambda_host.runtime_api import RuntimeApiServer  # noqa: PLC0415

        timeout_s = self._function.init_timeout_s
        with RuntimeApiServer(
            listener, self._extensions, self._function, self._queue, consumer, client.catch_up
        ) as api:
            in_time = self._queue.wait_until_asked(consumer, timeout_s)
            if not in_time:
                client.stop(0)
            status = client.wait() or 0
        failure = api.init_failure or exit_failure(status)
        if not in_time:
            failure = init_timeout_failure(timeout_s)
        return replace(failure, log_tail=client.tail())

    def _settle(self, consumer: QueueConsumer, failure: Failure) -> None:
        """End what the client ran, and note whether it has failed in its init."""
        if invocation := self._queue.retire(consumer):
            invocation.fail(self._environment_failure or failure)
        if not consumer.has_asked:
            self.init_failure = failure
            self._on_init_failure()
