"""Runs a function: gives its environments the events, and limits the time of each.

An environment that crashes is replaced by a new one (supervisor.py). Invocations wait meanwhile, or
go to another environment.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Self

from runtime.errors import LambdaComfyUIError
from runtime.lambda_host.failures import (
    UNAVAILABLE,
    Failure,
    InvocationResult,
    timeout_failure,
)
from runtime.lambda_host.function import Function
from runtime.lambda_host.invocations import Invocation, InvocationQueue, new_request_id
from runtime.lambda_host.runtime_client import CLIENT_STOP_GRACE_S
from runtime.lambda_host.supervisor import EnvironmentSupervisor, Listeners


class HostBusyError(LambdaComfyUIError):
    """As many invocations wait as the limit allows."""


class LambdaHost:
    """Runs `function` in AWS's runtime clients while it is entered.

    They start at once, before the first event. There is one environment for each item of
    `environments`: the variables that it has beside those of the function. `on_line` gets every
    line that a process writes, `on_state` a sentence for every change, and `on_ready` is called
    when an environment has started; all of them in threads of the host.

    When an environment has failed too often, or once because its machine is unfit, it is not
    replaced any more. When that has happened to all of them, `on_give_up` gets the failure. Without
    `on_give_up`, environments are replaced for ever.
    """

    def __init__(
        self,
        function: Function,
        *,
        on_line: Callable[[str], object],
        on_state: Callable[[str], object] = lambda _: None,
        on_ready: Callable[[], object] = lambda: None,
        on_give_up: Callable[[Failure], object] | None = None,
        environments: Sequence[Mapping[str, str]] = ({},),
        may_overtake: int = 0,
    ) -> None:
        self.function = function
        self._on_state, self._on_ready, self._on_give_up = on_state, on_ready, on_give_up
        self._queue = InvocationQueue(self._clients_of(environments), may_overtake=may_overtake)
        self._lock = threading.Lock()
        self._alive = len(environments)
        self._supervisors = [
            EnvironmentSupervisor(
                function.with_variables(variables),
                self._queue,
                self._listeners(f"gpu {number}: " if len(environments) > 1 else "", on_line),
                gives_up=on_give_up is not None,
            )
            for number, variables in enumerate(environments)
        ]

    @property
    def concurrency(self) -> int:
        """How many invocations run at once, in all environments together."""
        return self._clients_of(self._supervisors)

    def __enter__(self) -> Self:
        for supervisor in self._supervisors:
            supervisor.start()
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
            for supervisor in self._supervisors:
                supervisor.kill_client_of(invocation)
        assert invocation.result is not None
        return invocation.result

    @property
    def is_closed(self) -> bool:
        """Whether new invocations are refused."""
        return self._queue.is_closed

    @contextmanager
    def reserved_client(self, timeout_s: float) -> Iterator[bool]:
        """Wait for a free client, and let nobody else count on it while an event is fetched.

        False after `timeout_s` seconds, or when stopping.
        """
        if not self._queue.reserve(timeout_s):
            yield False
            return
        try:
            yield True
        finally:
            self._queue.unreserve()

    def next_models(self) -> Sequence[frozenset[str]]:
        """The model files that are most probably loaded where the next invocation will run."""
        return self._queue.next_models()

    def drain(self, timeout_s: float) -> bool:
        """Refuse new invocations and wait for those that run; False if one does after `timeout_s`.

        Invocations that no client has taken fail as unavailable, at once.
        """
        self._queue.close()
        return self._queue.wait_until_idle(timeout_s)

    def close(self, grace_s: float) -> None:
        """Stop every process, after `grace_s` seconds with SIGKILL."""
        self._queue.close()
        for supervisor in self._supervisors:
            supervisor.close(grace_s)
        for supervisor in self._supervisors:
            supervisor.join()

    def _clients_of(self, environments: Sequence[object]) -> int:
        return len(environments) * self.function.concurrency

    def _listeners(self, label: str, on_line: Callable[[str], object]) -> Listeners:
        return Listeners(
            line=on_line,
            state=lambda text: self._on_state(label + text),
            ready=self._on_ready,
            start_failed=self._note_failed_start,
            is_needed=self._are_all_failing,
            ended=partial(self._note_end, label),
        )

    def _note_failed_start(self, failure: Failure) -> None:
        # The next start would most likely fail, too: the callers get the reason now.
        if self._are_all_failing():
            self._queue.fail_waiting(failure)

    def _are_all_failing(self) -> bool:
        return all(supervisor.is_failing for supervisor in self._supervisors)

    def _note_end(self, label: str, failure: Failure | None) -> None:
        with self._lock:
            self._alive -= 1
            is_last = not self._alive
        self._queue.remove_clients(self.function.concurrency)
        if is_last:
            self._queue.close()
        if failure and is_last and self._on_give_up:
            self._on_give_up(failure)
        elif failure:
            self._on_state(f"{label}not used any more: {failure.message or failure.error_type}")


def is_unavailable(result: InvocationResult) -> bool:
    """Whether no client began with the invocation, because the host was stopping."""
    return result.function_error == UNAVAILABLE.error_type
