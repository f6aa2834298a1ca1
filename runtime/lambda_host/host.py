"""Runs a function: keeps an environment running, gives it the events, and limits their time.

An environment that crashes is replaced by a new one. Invocations wait meanwhile.
"""

import threading
import time
from collections.abc import Callable
from typing import Self

from events.back_off import back_off_s
from runtime.errors import LambdaComfyUIError
from runtime.lambda_host.environment import ExecutionEnvironment
from runtime.lambda_host.failures import (
    UNAVAILABLE,
    WORKER_UNFIT,
    Failure,
    InvocationResult,
    timeout_failure,
)
from runtime.lambda_host.function import Function
from runtime.lambda_host.invocations import Invocation, InvocationQueue, new_request_id
from runtime.lambda_host.runtime_client import CLIENT_STOP_GRACE_S

_MAX_PAUSE_S = 30.0
# The failure of an environment that has run for longer says nothing about the next one.
_STABLE_AFTER_S = 60.0
MAX_FAILURES = 5


class HostBusyError(LambdaComfyUIError):
    """As many invocations wait as the limit allows."""


class LambdaHost:
    """Runs `function` in AWS's runtime clients while it is entered.

    They start at once, before the first event. `on_line` gets every line that a process writes,
    `on_state` a sentence for every change, both in threads of the host. When MAX_FAILURES
    environments in a row have failed, or one because its machine is unfit, `on_give_up` gets the
    failure, if it is given, and no other environment is started.
    """

    def __init__(
        self,
        function: Function,
        *,
        on_line: Callable[[str], object],
        on_state: Callable[[str], object] = lambda _: None,
        on_give_up: Callable[[Failure], object] | None = None,
    ) -> None:
        self.function = function
        self._on_line, self._on_state, self._on_give_up = on_line, on_state, on_give_up
        self._queue = InvocationQueue(function.concurrency)
        self._lock = threading.Lock()
        self._environment: ExecutionEnvironment | None = None
        self._is_closed = False
        self._supervisor = threading.Thread(target=self._supervise)

    def __enter__(self) -> Self:
        self._supervisor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close(CLIENT_STOP_GRACE_S)

    def invoke(
        self,
        event: bytes,
        *,
        timeout_s: float,
        request_id: str | None = None,
        limit: int | None = None,
    ) -> InvocationResult:
        """Run one event (JSON), for `timeout_s` seconds at most from when a client takes it.

        Raises HostBusyError when `limit` others wait already.
        """
        invocation = Invocation(event, timeout_s, request_id or new_request_id())
        return self.run(invocation, limit=limit)

    def run(self, invocation: Invocation, *, limit: int | None = None) -> InvocationResult:
        """The same for an invocation of the caller, who can read its log afterwards."""
        if not self._queue.put(invocation, limit):
            raise HostBusyError(f"{limit} invocations wait already")
        # Without a limit: a client takes it, or the failure of the environment ends it.
        invocation.taken.wait()
        if not invocation.finished.wait(invocation.timeout_s) and invocation.fail(
            timeout_failure(invocation.timeout_s)
        ):
            self._kill_client_of(invocation)
        assert invocation.result is not None
        return invocation.result

    @property
    def is_closed(self) -> bool:
        """Whether new invocations are refused."""
        return self._queue.is_closed

    def wait_until_free(self, timeout_s: float) -> bool:
        """Block until a client is free; False after `timeout_s` seconds, or when stopping."""
        return self._queue.wait_until_free(timeout_s)

    def drain(self, timeout_s: float) -> bool:
        """Refuse new invocations and wait for those that run; False if one does after `timeout_s`.

        Invocations that no client has taken fail as unavailable, at once.
        """
        self._queue.close()
        return self._queue.wait_until_idle(timeout_s)

    def close(self, grace_s: float) -> None:
        """Stop every process, after `grace_s` seconds with SIGKILL."""
        with self._lock:
            self._is_closed = True
            environment = self._environment
        self._queue.close()
        if environment:
            environment.stop(grace_s)
        self._supervisor.join()

    def _supervise(self) -> None:
        failures = 0
        try:
            while environment := self._next_environment():
                began = time.monotonic()
                failure = environment.run()
                if failure is None:
                    return
                # An extension that reports an error means it, however late events let it do so.
                is_stable = (
                    environment.was_ready
                    and not environment.has_given_up
                    and time.monotonic() - began > _STABLE_AFTER_S
                )
                failures = 1 if is_stable else failures + 1
                self._note_failure(failure, failures, was_ready=environment.was_ready)
                # No pause after the first failure; an event ends every other pause.
                pause_s = back_off_s(failures - 1, first_s=1.0, most_s=_MAX_PAUSE_S)
                if not self._queue.wait_until_needed(pause_s, or_until=lambda: self._is_closed):
                    return
        finally:
            self._queue.close()

    def _next_environment(self) -> ExecutionEnvironment | None:
        with self._lock:
            if self._is_closed:
                return None
            self._environment = ExecutionEnvironment(
                self.function,
                self._queue,
                on_line=self._on_line,
                on_ready=lambda took_s: self._on_state(f"ready, init took {took_s:.1f} s"),
            )
            return self._environment

    def _note_failure(self, failure: Failure, failures: int, *, was_ready: bool) -> None:
        what = "crashed" if was_ready else "failed to start"
        self._on_state(f"environment {what} ({failures} in a row): {failure.error_type}")
        if not was_ready:
            # The next one would most likely fail, too: the callers get the reason now.
            self._queue.fail_waiting(failure)
        is_hopeless = failures >= MAX_FAILURES or failure.error_type == WORKER_UNFIT
        if self._on_give_up and is_hopeless:
            self._queue.close()
            self._on_give_up(failure)

    def _kill_client_of(self, invocation: Invocation) -> None:
        with self._lock:
            environment = self._environment
        if environment:
            environment.kill_client_of(invocation)


def is_unavailable(result: InvocationResult) -> bool:
    """Whether no client began with the invocation, because the host was stopping."""
    return result.function_error == UNAVAILABLE.error_type
