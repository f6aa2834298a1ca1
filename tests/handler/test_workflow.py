"""Placeholders and the checks before queueing, on graphs alone."""

from typing import Any

import pytest

from events.errors import WorkflowRejected
from handler.workflow import (
    explain_links,
    fill_random_ints,
    nodes_to_run,
    unneeded_nodes,
)
from tests.workflows import node


def test_whole_placeholder_becomes_an_integer_and_others_are_spliced() -> None:
    filled = fill_random_ints({"seed": "__RANDOM_INT__", "name": "a-__RANDOM_INT__-b"})

    assert isinstance(filled["seed"], int)
    assert 0 <= filled["seed"] < 2**32
    first, digits, last = filled["name"].split("-")
    assert (first, last) == ("a", "b")
    assert digits.isdigit()


def test_each_occurrence_draws_its_own_number() -> None:
    filled = fill_random_ints(["__RANDOM_INT__"] * 50 + ["__RANDOM_INT__ __RANDOM_INT__"])

    assert len(set(filled[:50])) > 45
    one, other = filled[50].split()
    assert one != other


def test_keys_and_the_original_stay_as_they_are() -> None:
    original: dict[str, Any] = {"__RANDOM_INT__": {"x": ["__RANDOM_INT__", 1, None, True]}}

    filled = fill_random_ints(original)

    assert list(filled) == ["__RANDOM_INT__"]
    assert original["__RANDOM_INT__"]["x"][0] == "__RANDOM_INT__"
    assert filled["__RANDOM_INT__"]["x"][1:] == [1, None, True]


def test_link_to_a_missing_node_is_refused() -> None:
    with pytest.raises(WorkflowRejected, match="'images' is linked to node '9'"):
        explain_links({"1": node("SaveImage", images=["9", 0])})


def test_cycle_is_refused() -> None:
    with pytest.raises(WorkflowRejected, match="cycle"):
        explain_links({"a": node("X", i=["b", 0]), "b": node("X", i=["a", 0])})


def test_long_chains_are_no_problem() -> None:
    chain = {str(n): node("X", i=[str(n + 1), 0]) for n in range(20_000)}

    explain_links(chain | {"20000": node("X")})


GRAPH = {
    "1": node("Load"),
    "2": node("Sampler", model=["1", 0], also=["1", 1]),
    "3": node("Save", images=["2", 0]),
    "4": node("Decode", samples=["2", 0]),
    "5": node("Scale", image=["4", 0], gone=["99", 0]),
    "6": node("Alone"),
}


def test_nodes_that_no_output_needs_are_found() -> None:
    asked: list[str] = []

    def is_output(class_type: str) -> bool:
        asked.append(class_type)
        return class_type == "Save"

    assert unneeded_nodes(GRAPH, is_output) == {"4", "5", "6"}
    assert set(asked) == {"Save", "Scale", "Alone", "Decode"}


@pytest.mark.parametrize(
    ("cached", "left"),
    [
        ([], set(GRAPH)),
        (["1"], {"2", "3", "4", "5", "6"}),
        (["2"], {"3", "4", "5", "6"}),
        (["3", "5"], {"6"}),
        (list(GRAPH), set()),
    ],
)
def test_what_only_cached_nodes_read_is_not_left_to_run(cached: list[str], left: set[str]) -> None:
    assert nodes_to_run(GRAPH, cached) == left
