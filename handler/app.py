"""`lambda_handler`: connects event sources, settings and the pipeline of one job."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from events import invoker, sources, sqs_visibility
from events.contract import caller_of
from events.errors import Misconfigured
from events.event_context import EventContext, Handle, always, never
from handler.clock import Deadline
from handler.connections import Connections
from handler.generate import generate
from handler.response import JobResult, build_response
from handler.settings import Settings, SettingsError

if TYPE_CHECKING:
    from handler.api.function_api import FunctionApi

_connections: dict[Settings, Connections] = {}
_fronts: dict[Settings, "FunctionApi"] = {}


def lambda_handler(event: Any, context: Any) -> dict[str, Any]:
    """Run every job that an event holds, and return the reply that its source expects.

    A direct invocation gets the documented response; docs/contract.md has the other replies.
    Raises TryAgain where Lambda repeats an event whose function raises (SNS, S3, EventBridge), and
    NotTold if a job's result could not be sent to Step Functions. `context` is Lambda's; None means
    no deadline.
    """
    source = sources.recognize(event)
    settings, misconfigured = _settings()
    deadline = Deadline(context, settings.deadline_margin_s)

    is_repeated = invoker.comes_again(context)

    def handle(request: Any, /, *, comes_again: Callable[[], bool] = never) -> dict[str, Any]:
        if is_repeated:
            comes_again = always
        if misconfigured:
            return build_response(JobResult(caller_of(request), error=misconfigured))
        return generate(request, _connect(settings), deadline, sources.name_of(source), comes_again)

    return source.process(
        event,
        EventContext(
            handle=handle,
            answer_http=lambda call, handle: _answer_http(call, handle, settings),
            time_left_s=deadline.answer_left_s,
            dead_letter_queue_url=settings.dead_letter_queue_url,
            caller_hides_messages=sqs_visibility.caller_hides_messages(context),
        ),
    )


def _answer_http(event: dict[str, Any], handle: Handle, settings: Settings) -> dict[str, Any]:
    if settings not in _fronts:
        from handler.api.function_api import FunctionApi  # noqa: PLC0415 - 0.2 s, for HTTP alone

        _fronts.clear()
        _fronts[settings] = FunctionApi(settings)
    return _fronts[settings].answer(event, handle)


def _settings() -> tuple[Settings, Misconfigured | None]:
    try:
        return Settings.from_env(os.environ), None
    except SettingsError as error:
        return Settings(), Misconfigured(str(error))


def _connect(settings: Settings) -> Connections:
    if settings not in _connections:
        for outdated in _connections.values():
            outdated.close()
        _connections.clear()
        _connections[settings] = Connections(settings)
    return _connections[settings]
