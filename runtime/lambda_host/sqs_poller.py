"""Receives messages from a queue, invokes the function with them, and deletes those that are done.

It does what Lambda's event source mapping does. How long a message is hidden is decided in
events/sqs_visibility.py: for HIDDEN_S at a time while its job runs; for a back-off after a crash or
a timeout of the function. A message that the function itself gives back stays hidden as the
function has asked SQS for, else for the rest of HIDDEN_S.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from events.back_off import back_off_s
from events.repeating_timer import RepeatingTimer
from events.sqs_visibility import (
    CALLER_HIDES_MESSAGES,
    CRASH_BACK_OFF_S,
    HIDDEN_S,
    RENEWALS_IN_HIDDEN_S,
    back_off_after_crash_s,
)
from runtime.lambda_host.failures import InvocationResult
from runtime.lambda_host.host import LambdaHost, is_unavailable
from runtime.lambda_host.invocations import Invocation
from runtime.lambda_host.sqs_event import event_of, failed_messages
from runtime.lambda_host.sqs_queue import Message, QueueError, SqsQueue

_FREE_WITHIN_S = 1.0
_MAX_PAUSE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PollerRules:
    """How the queue is polled.

    - `batch_size`: messages in one event, 1 to 10.
    - `visibility_s`: seconds for which received messages are hidden at a time.
    - `back_off_s`: seconds for which a message is hidden after its first crash.
    """

    batch_size: int = 1
    visibility_s: int = HIDDEN_S
    back_off_s: float = CRASH_BACK_OFF_S


class SqsPoller:
    """Polls from `start` to `stop`, and runs `concurrency` batches at once.

    It receives messages only while a runtime client of the host is free, and leaves the others to
    other machines. `on_state` gets a sentence for every failure, in a thread of the poller.
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
        """Receive nothing new. Messages whose job has not begun go back when the host drains."""
        self._stopping.set()

    def join(self, timeout_s: float) -> bool:
        """Wait until every message is deleted or given back, and the open polls have ended.

        False if that takes more than `timeout_s` seconds.
        """
        give_up = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(give_up - time.monotonic(), 0))
        return not any(thread.is_alive() for thread in self._threads)

    def _poll(self) -> None:
        failures = 0
        while not self._stopping.is_set() and not self._host.is_closed:
            try:
                messages = self._receive()
                if not messages:
                    continue
                is_success = self._process(messages)
            except Exception as error:  # any error: the thread must go on polling
                reason = error if isinstance(error, QueueError) else repr(error)
                self._on_state(f"queue: {reason}")
                is_success = False
            failures = 0 if is_success else failures + 1
            # A machine on which every job fails must not empty the queue.
            self._stopping.wait(back_off_s(failures, first_s=1.0, most_s=_MAX_PAUSE_S))

    def _receive(self) -> Sequence[Message]:
        """Messages for a client that is free; none if there is none. Raises QueueError."""
        with self._host.reserved_client(_FREE_WITHIN_S) as is_free:
            if not is_free:
                return []
            return self._queue.receive(
                self._rules.batch_size, visibility_s=self._rules.visibility_s
            )

    def _process(self, messages: Sequence[Message]) -> bool:
        """Invoke the function with the messages. False if all of them failed. Raises QueueError."""
        if self._stopping.is_set():
            self._show_again(messages)
            return True
        event = event_of(messages, self._queue.arn)
        invocation = Invocation(event, self._timeout_s, client_context=CALLER_HIDES_MESSAGES)
        with RepeatingTimer(
            self._rules.visibility_s / RENEWALS_IN_HIDDEN_S, partial(self._hide_again, messages)
        ):
            result = self._host.run(invocation)
        failed = failed_messages(messages, result)
        try:
            self._queue.delete([message for message in messages if message not in failed])
        finally:
            self._give_back(failed, result)
        return len(failed) < len(messages)

    def _hide_again(self, messages: Sequence[Message]) -> bool:
        try:
            self._queue.hide(messages, [float(self._rules.visibility_s)] * len(messages))
        except QueueError as error:
            # The messages are still hidden: see RENEWALS_IN_HIDDEN_S.
            self._on_state(f"queue: heartbeat: {error}")
        return True

    def _give_back(self, failed: Sequence[Message], result: InvocationResult) -> None:
        if failed and result.function_error and not is_unavailable(result):
            self._on_state(f"queue: {len(failed)} messages go back: {result.function_error}")
        if self._stopping.is_set():
            # Their jobs were ended by the stop; another machine may be free.
            self._show_again(failed)
        elif result.function_error:
            first_s = self._rules.back_off_s
            back_offs = [back_off_after_crash_s(item.receive_count, first_s) for item in failed]
            self._queue.hide(failed, back_offs)

    def _show_again(self, messages: Sequence[Message]) -> None:
        self._queue.hide(messages, [0.0] * len(messages))
