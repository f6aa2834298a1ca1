"""Each event is recognized by one module, whatever the order of the modules."""

from typing import Any

import pytest

from events import sources
from events.sources import SOURCES, name_of, recognize
from tests.events.samples import NAMES, sample

OWN = [source for source in SOURCES if name_of(source) != "direct"]


@pytest.mark.parametrize("name", NAMES)
def test_sample_is_recognized_by_its_module_alone(name: str) -> None:
    source = name.partition("_")[0]
    event = sample(name)

    assert name_of(recognize(event)) == source
    assert [name_of(s) for s in OWN if s.matches(event)] == [source] * (source != "direct")


def test_every_source_has_a_sample() -> None:
    assert {name.partition("_")[0] for name in NAMES} == {name_of(s) for s in SOURCES}


@pytest.mark.parametrize("name", NAMES)
def test_event_with_a_wrong_part_is_recognized_without_an_exception(name: str) -> None:
    event = sample(name)
    others: tuple[Any, ...] = (None, 7, "text", [], [None], {}, {"x": []})
    for part in event:
        for other in others:
            assert name_of(sources.recognize({**event, part: other}))


def test_records_of_two_sources_are_no_event_of_either() -> None:
    mixed = [sample(name)["Records"][0] for name in ("sqs_message", "sns_notification")]

    assert name_of(recognize({"Records": mixed})) == "direct"
