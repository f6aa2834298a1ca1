"""The calls of one job's webhook: about its end, and while it goes on where the request asks.

How a call is made is decided in webhook.py, which calls are made meanwhile in webhook_progress.py.
"""

from collections.abc import Callable
from typing import Any

from events.job import Caller
from handler import webhook
from handler.clock import Deadline
from handler.job_events import JobEvent
from handler.jobs.record import WebhookState
from handler.settings import Settings
from handler.webhook_progress import ProgressCalls


class JobWebhook:
    """The webhook of the request, or of the environment, or none."""

    def __init__(self, caller: Caller, settings: Settings, deadline: Deadline) -> None:
        self._caller, self._settings, self._deadline = caller, settings, deadline

    def wants(self, response: dict[str, Any]) -> bool:
        """Whether it is to be called about this end of the job."""
        return self._is_named and self._caller.wants_end(response["status"])

    def call(self, response: dict[str, Any], event_id: str) -> WebhookState:
        """Call it about the end of the job, within the invocation's time. Never raises."""
        is_delivered = webhook.deliver(
            response,
            self._caller,
            self._settings,
            event_id=event_id,
            budget_s=self._deadline.answer_left_s(),
        )
        return WebhookState.DELIVERED if is_delivered else WebhookState.FAILED

    def progress_calls(self, items: Callable[[], list[dict[str, Any]]]) -> ProgressCalls:
        """The calls while the job goes on; `items` returns the items of `output` by now."""

        def call(body: dict[str, Any], report: Callable[[JobEvent], None]) -> None:
            webhook.deliver(
                body,
                self._caller,
                self._settings,
                event_id=webhook.new_event_id(),
                budget_s=self._deadline.answer_left_s(),
                max_attempts=1,
                report=report,
            )

        wanted = self._caller.webhook_events if self._is_named else ()
        return ProgressCalls(self._caller.request_id, wanted, call, items)

    @property
    def _is_named(self) -> bool:
        return webhook.is_named(self._caller, self._settings)
