"""Keeps one environment running: a new one replaces one that has crashed or did not start."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from events.back_off import back_off_s
from runtime.lambda_host.environment import ExecutionEnvironment
from runtime.lambda_host.failures import WORKER_UNFIT, Failure
from runtime.lambda_host.function import Function
from runtime.lambda_host.invocations import Invocation, InvocationQueue

_MAX_PAUSE_S = 30.0
# The failure of an environment that has run for longer says nothing about the next one.
_STABLE_AFTER_S = 60.0
MAX_FAILURES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Listeners:
    """What a supervisor calls, in its thread.

    `line` gets every line that a process writes, `state` a sentence for every change. `ready` is
    called when an environment has started, and `start_failed` gets why one did not. `ended` is
    called once: with the failure after which another one is not worth a try, or None after `close`.
    """

    line: Callable[[str], object]
    state: Callable[[str], object]
    ready: Callable[[], object]
    start_failed: Callable[[Failure], object]
    is_needed: Callable[[], bool]
    ended: Callable[[Failure | None], object]


class EnvironmentSupervisor:
    """Runs environments of `function`, one after the other, from `start` to `close`.

    With `gives_up`, MAX_FAILURES in a row end it, or one because its machine is unfit.
    `is_failing`: the last environment has failed, and none was ready since.
    """

    def __init__(
        self, function: Function, queue: InvocationQueue, listeners: Listeners, *, gives_up: bool
    ) -> None:
        self.is_failing = False
        self._function, self._queue, self._listeners = function, queue, listeners
        self._gives_up = gives_up
        self._lock = threading.Lock()
        self._environment: ExecutionEnvironment | None = None
        self._is_closed = False
        self._thread = threading.Thread(target=self._supervise)

    def start(self) -> None:
        self._thread.start()

    def close(self, grace_s: float) -> None:
        """Stop every process, after `grace_s` seconds with SIGKILL; `join` waits for their ends."""
        with self._lock:
            self._is_closed = True
            environment = self._environment
        if environment:
            environment.stop(grace_s)

    def join(self) -> None:
        self._thread.join()

    def kill_client_of(self, invocation: Invocation) -> None:
        """Kill the client that runs this invocation, if it is one of this environment."""
        with self._lock:
            environment = self._environment
        if environment:
            environment.kill_client_of(invocation)

    def _supervise(self) -> None:
        failure = None
        try:
            failure = self._run_environments()
        finally:
            self._listeners.ended(failure)

    def _run_environments(self) -> Failure | None:
        """The failure that makes another environment hopeless; None after `close`."""
        failures = 0
        while environment := self._next_environment():
            began = time.monotonic()
            failure = environment.run()
            if failure is None:
                return None
            # An extension that reports an error means it, however late events let it do so.
            is_stable = (
                environment.was_ready
                and not environment.has_given_up
                and time.monotonic() - began > _STABLE_AFTER_S
            )
            failures = 1 if is_stable else failures + 1
            self._note_failure(failure, failures, was_ready=environment.was_ready)
            is_hopeless = failures >= MAX_FAILURES or failure.error_type == WORKER_UNFIT
            if self._gives_up and is_hopeless:
                return failure
            # No pause after the first failure. An event that needs this environment ends a pause.
            pause_s = back_off_s(failures - 1, first_s=1.0, most_s=_MAX_PAUSE_S)
            if not self._queue.wait_until_needed(
                pause_s, or_until=lambda: self._is_closed, is_needed=self._listeners.is_needed
            ):
                return None
        return None

    def _next_environment(self) -> ExecutionEnvironment | None:
        with self._lock:
            if self._is_closed:
                return None
            self._environment = ExecutionEnvironment(
                self._function,
                self._queue,
                on_line=self._listeners.line,
                on_ready=self._note_ready,
            )
            return self._environment

    def _note_ready(self, took_s: float) -> None:
        self.is_failing = False
        self._listeners.ready()
        self._listeners.state(f"ready, init took {took_s:.1f} s")

    def _note_failure(self, failure: Failure, failures: int, *, was_ready: bool) -> None:
        self.is_failing = True
        what = "crashed" if was_ready else "failed to start"
        self._listeners.state(f"environment {what} ({failures} in a row): {failure.error_type}")
        if not was_ready:
            self._listeners.start_failed(failure)
