"""Which waiting job runs next, and where: one that names the models which a ComfyUI has loaded.

Loading models takes longer than most jobs. A job is overtaken a limited number of times, so none
waits for ever.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Protocol

from handler.workflow import MODEL_SUFFIXES

# Of the jobs that wait, only the first ones are compared.
COMPARED_JOBS = 100
_SUFFIXES = "|".join(re.escape(suffix) for suffix in MODEL_SUFFIXES)
# A request may be a string within the event, as in a message of SQS: its quotes are escaped then.
_MODEL = re.compile(rf'"([^"\\]+(?:{_SUFFIXES}))\\*"'.encode())


class WaitingJob(Protocol):
    """`models` are the files that it names; `overtaken`: how many later jobs began before it."""

    @property
    def models(self) -> frozenset[str]: ...

    @property
    def overtaken(self) -> int: ...


def models_in(event: bytes) -> frozenset[str]:
    """The model files that an event (JSON) names, wherever its source puts the workflow."""
    return frozenset(name.decode(errors="replace") for name in _MODEL.findall(event))


def choose(
    waiting: Sequence[WaitingJob], places: Sequence[Iterable[str]], *, may_overtake: int
) -> tuple[int, int]:
    """The job that runs next and the place that takes it, as indexes.

    `places` are the loaded models of every ComfyUI that is free; neither sequence is empty. The
    pair that shares most models is chosen; among equals, the first job and the first place. A job
    that others have overtaken `may_overtake` times is chosen first.
    """
    compared = 1 if waiting[0].overtaken >= may_overtake else COMPARED_JOBS
    jobs = list(islice(waiting, compared))
    pairs = ((job, place) for job in range(len(jobs)) for place in range(len(places)))
    # `max` keeps the first of equal pairs.
    return max(pairs, key=lambda pair: len(jobs[pair[0]].models.intersection(places[pair[1]])))
