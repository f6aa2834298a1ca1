"""`lambda_handler`: the only place where event sources, settings and the generator are wired."""

import os
from typing import Any

from events import sources
from events.contract import caller_of
from handler.clock import Deadline
from handler.errors import Misconfigured
from handler.generate import Generator
from handler.outcome import Outcome
from handler.settings import Settings, SettingsError

_generators: dict[Settings, Generator] = {}


def lambda_handler(event: Any, context: Any) -> dict[str, Any]:
    """Run every job that an event holds, and return the reply that its source expects.

    A direct invocation gets the documented response, an SQS batch the partial batch response.
    Nothing that an event can hold makes it raise. `context` is Lambda's; None means no deadline.
    """
    source = sources.recognise(event)

    def handle(request: Any) -> dict[str, Any]:
        try:
            settings = Settings.from_env(os.environ)
        except SettingsError as error:
            return Outcome(caller_of(request), error=Misconfigured(str(error))).response()
        deadline = Deadline(context, settings.deadline_margin_s)
        return _generator(settings).generate(request, deadline, sources.name_of(source))

    return source.process(event, handle)


def _generator(settings: Settings) -> Generator:
    if settings not in _generators:
        for outdated in _generators.values():
            outdated.close()
        _generators.clear()
        _generators[settings] = Generator(settings)
    return _generators[settings]
