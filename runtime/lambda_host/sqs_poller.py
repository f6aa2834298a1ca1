"""Takes messages from a queue, runs them, deletes what is done: an event source mapping.

A message is hidden for a minute at a time, again and again while its job runs: one that a machine
takes to its grave is back a minute later. What crashed or ran out of time goes back with a growing
delay. What the function itself gives back stays hidden for as long as the function has said to SQS,
or else for what is left of the minute, as it would on Lambda.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from events.back_off import back_off_s
from events.repeating_timer import RepeatingTimer
from runtime.lambda_host.failures import InvocationResult
from runtime.lambda_host.host import LambdaHost, is_unavailable
from runtime.lambda_host.sqs_event import event_of, failed_messages
from runtime.lambda_host.sqs_queue import Message, QueueError, SqsQueue

_FREE_WITHIN_S = 1.0
_MAX_PAUSE_S = 60.0
_MAX_BACK_OFF_S = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PollerRules:
    """`batch_size` messages an event. One that crashed is hidden for `back_off_s`, then the double.

    By then the claim of a killed handler has ended: see LEASE_S in handler/jobs/claims.py.
    """

    batch_size: int = 1
    visibility_s: int = 60
    back_off_s: float = 20.0


class SqsPoller:
    """Polls while it is started, `concurrency` batches at once.

    It takes nothing while no client of the host is free: another machine may be.
    """

    def __init__(
        self,
        host: LambdaHost,
        queue: SqsQueue,
        rules: PollerRules,
        *,
        concurrency: int,
        timeout_s: float,
        on_state: Callable[[str], object],
    ) -> None:
        self._host, self._queue, self._rules = host, queue, rules
        self._timeout_s, self._on_state = timeout_s, on_state
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._poll, daemon=True) for _ in range(concurrency)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Take nothing new. What is held and not begun goes back when the host drains."""
        self._stopping.set()

    def join(self, timeout_s: float) -> bool:
        """Wait until every message is deleted or back, and the open polls are over."""
        give_up = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(give_up - time.monotonic(), 0))
        return not any(thread.is_alive() for thread in self._threads)

    def _poll(self) -> None:
        failures = 0
        while not self._stopping.is_set() and not self._host.is_closed:
            if not self._host.wait_until_free(_FREE_WITHIN_S):
                continue
            try:
                messages = self._queue.receive(
                    self._rules.batch_size, visibility_s=self._rules.visibility_s
                )
                if not messages:
                    continue
                is_success = self._work_off(messages)
            except Exception as error:  # whatever it is, the next message must not wait for ever
                told = error if isinstance(error, QueueError) else repr(error)
                self._on_state(f"queue: {told}")
                is_success = False
            failures = 0 if is_success else failures + 1
            # A machine on which everything fails must not fail the whole queue, too.
            self._stopping.wait(back_off_s(failures, first_s=1.0, most_s=_MAX_PAUSE_S))

    def _work_off(self, messages: Sequence[Message]) -> bool:
        """False when none of the messages got done. Raises QueueError."""
        if self._stopping.is_set():
            self._queue.hide(messages, [0.0] * len(messages))
            return True
        with RepeatingTimer(self._rules.visibility_s / 3, partial(self._keep_hidden, messages)):
            event = event_of(messages, self._queue.arn)
            result = self._host.invoke(event, timeout_s=self._timeout_s)
        failed = failed_messages(messages, result)
        try:
            self._queue.delete([each for each in messages if each not in failed])
        finally:
            self._give_back(failed, result)
        return len(failed) < len(messages)

    def _keep_hidden(self, messages: Sequence[Message]) -> bool:
        try:
            self._queue.hide(messages, [float(self._rules.visibility_s)] * len(messages))
        except QueueError as error:
            # Two more beats may fail before the message is anybody else's.
            self._on_state(f"queue: heartbeat: {error}")
        return True

    def _give_back(self, failed: Sequence[Message], result: InvocationResult) -> None:
        if failed and result.function_error and not is_unavailable(result):
            self._on_state(f"queue: {len(failed)} messages go back: {result.function_error}")
        if self._stopping.is_set():
            # They are not to blame, and another machine may be free.
            self._queue.hide(failed, [0.0] * len(failed))
        elif result.function_error:
            first_s = self._rules.back_off_s
            self._queue.hide(
                failed,
                [
                    back_off_s(each.receive_count, first_s=first_s, most_s=_MAX_BACK_OFF_S)
                    for each in failed
                ],
            )
