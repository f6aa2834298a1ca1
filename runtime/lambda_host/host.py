"""Runs a function: keeps an environment up, gives it the events, and holds it to its time.

An environment that crashes is replaced by a new one; who waits in the meantime, waits.
"""

import threading
import time
from collections.abc import Callable
from typing import Self

from events.back_off import back_off_s
from runtime.errors import LambdaComfyUIError
from runtime.lambda_host.environment import RIC_STOP_GRACE_S, Environment
from runtime.lambda_host.failures import UNAVAILABLE, InvocationResult, out_of_means, timeout_error
from runtime.lambda_host.function import Function
from runtime.lambda_host.invocations import Invocation, InvocationQueue

_MAX_PAUSE_S = 30.0
# An environment that has lived as long is no sign that the next one would fail, too.
_STABLE_AFTER_S = 60.0
MAX_FAILURES = 5


class HostBusyError(LambdaComfyUIError):
    """As many invocations wait as may wait."""


class LambdaHost:
    """Runs `function` in AWS's runtime clients while it is entered.

    They start at once, before the first event. `on_line` gets every line that a process writes,
    `on_state` a sentence for every change, both in threads of ours. After MAX_FAILURES
    environments in a row that failed `on_give_up` is called, if it is given, and nothing more is
    started.
    """

    def __init__(
        self,
        function: Function,
        *,
        on_line: Callable[[str], object],
        on_state: Callable[[str], object] = lambda _: None,
        on_give_up: Callable[[], object] | None = None,
    ) -> None:
        self.function = function
        self._on_line, self._on_state, self._on_give_up = on_line, on_state, on_give_up
        self._queue = InvocationQueue()
        self._lock = threading.Lock()
        self._environment: Environment | None = None
        self._is_closed = False
        self._supervisor = threading.Thread(target=self._supervise)

    def __enter__(self) -> Self:
        self._supervisor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close(RIC_STOP_GRACE_S)

    def invoke(
        self,
        event: bytes,
        *,
        timeout_s: float,
        request_id: str | None = None,
        limit: int | None = None,
    ) -> InvocationResult:
        """Run one event and wait for its result, `timeout_s` seconds after a client took it.

        Raises HostBusyError when `limit` others wait already.
        """
        invocation = Invocation(event, timeout_s)
        invocation.request_id = request_id or invocation.request_id
        return self.run(invocation, limit=limit)

    def run(self, invocation: Invocation, *, limit: int | None = None) -> InvocationResult:
        """The same for an invocation that the caller has made, and keeps: its log is there."""
        if not self._queue.put(invocation, limit):
            raise HostBusyError(f"{limit} invocations wait already")
        # No limit here: the client that is on its way, or its failure, ends this wait.
        invocation.taken.wait()
        error = timeout_error(invocation.timeout_s, invocation.request_id)
        if not invocation.finished.wait(invocation.timeout_s) and invocation.finish(error):
            self._kill_client_of(invocation)
        assert invocation.result is not None
        return invocation.result

    @property
    def is_closed(self) -> bool:
        """Whether nothing new is begun any more."""
        return self._queue.is_closed

    def wait_until_free(self, timeout_s: float) -> bool:
        """Block until a client has nothing to do; False after `timeout_s`, or when stopping."""
        return self._queue.wait_until_free(timeout_s)

    def drain(self, timeout_s: float) -> bool:
        """Begin nothing new and let what runs end; False if it did not within `timeout_s`.

        What nobody has begun is answered as unavailable, at once.
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
                try:
                    environment.run()
                except (OSError, RuntimeError) as error:
                    # No process, thread or socket is to be had now.
                    reason = out_of_means(error)
                    environment.failure = lambda _, reason=reason: reason
                if environment.failure is None:
                    return
                # Not if its extension has said that it is no good: events only delayed that.
                is_stable = (
                    environment.was_ready
                    and not environment.is_given_up
                    and time.monotonic() - began > _STABLE_AFTER_S
                )
                failures = 1 if is_stable else failures + 1
                self._note_failure(environment, failures)
                # The first time at once; an event cuts every pause short.
                pause_s = back_off_s(failures - 1, first_s=1.0, most_s=_MAX_PAUSE_S)
                if not self._queue.wait_until_used(pause_s, or_until=lambda: self._is_closed):
                    return
        finally:
            self._queue.close()

    def _next_environment(self) -> Environment | None:
        with self._lock:
            if self._is_closed:
                return None
            self._environment = Environment(
                self.function,
                self._queue,
                on_line=self._on_line,
                on_ready=lambda took_s: self._on_state(f"ready, init took {took_s:.1f} s"),
            )
            return self._environment

    def _note_failure(self, environment: Environment, failures: int) -> None:
        assert environment.failure is not None
        what = "crashed" if environment.was_ready else "failed to start"
        reason = environment.failure(Invocation(b"", 0)).function_error
        self._on_state(f"environment {what} ({failures} in a row): {reason}")
        if not environment.was_ready:
            # Another one would most likely fail, too.
            self._queue.fail_waiting(environment.failure)
        if self._on_give_up and failures >= MAX_FAILURES:
            self._queue.close()
            self._on_give_up()

    def _kill_client_of(self, invocation: Invocation) -> None:
        with self._lock:
            environment = self._environment
        if environment:
            environment.kill_holder_of(invocation)


def is_unavailable(result: InvocationResult) -> bool:
    """Whether nobody began with the invocation, because the host was stopping."""
    return result is UNAVAILABLE
