"""`lambda_handler`: the only place where event sources, settings and the generator are wired."""

import os
from typing import Any

from events import sources, sqs
from events.contract import caller_of
from events.errors import Misconfigured
from handler.clock import Deadline
from handler.generate import Generator
from handler.response import Outcome
from handler.settings import Settings, SettingsError

_generators: dict[Settings, Generator] = {}


def lambda_handler(event: Any, context: Any) -> dict[str, Any]:
    """Run every job that an event holds, and return the reply that its source expects.

    A direct invocation gets the documented response; docs/contract.md has the other replies.
    Raises only where raising is the source's way to have an event repeated (S3, SNS, EventBridge),
    or a waiting task told of it. `context` is Lambda's; None means no deadline.
    """
    source = sources.recognise(event)
    settings, wrong = _settings()

    deadline = Deadline(context, settings.deadline_margin_s)

    def handle(request: Any) -> dict[str, Any]:
        if wrong:
            return Outcome(caller_of(request), error=wrong).response()
        return _generator(settings).generate(request, deadline, sources.name_of(source))

    if source is sqs:
        dead = settings.dead_letter_queue_url
        return sqs.process(event, handle, dead, deadline.answer_left_s())
    return source.process(event, handle)


def _settings() -> tuple[Settings, Misconfigured | None]:
    try:
        return Settings.from_env(os.environ), None
    except SettingsError as error:
        return Settings(), Misconfigured(str(error))


def _generator(settings: Settings) -> Generator:
    if settings not in _generators:
        for outdated in _generators.values():
            outdated.close()
        _generators.clear()
        _generators[settings] = Generator(settings)
    return _generators[settings]
