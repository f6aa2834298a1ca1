"""Which model is next, and which may leave the disk."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from runtime.models.need import Need

VAE, TEXT, HIGH, LOW, OTHER = map(Path, ("vae", "text", "high", "low", "other"))
ALL = [VAE, TEXT, HIGH, LOW, OTHER]
LAST_USED = {path: float(number) for number, path in enumerate(ALL)}


def need(
    *, awaited: Sequence[Path] = (), named: Sequence[Path] = (), loaded: Sequence[Path] = ()
) -> Need:
    return Need(awaited=awaited, named=named, listed=ALL, loaded=set(loaded))


def test_without_a_job_the_order_is_that_of_the_manifest() -> None:
    assert need().order() == ALL


def test_models_of_a_job_come_before_the_others() -> None:
    assert need(named=[HIGH, OTHER]).order() == [HIGH, OTHER, VAE, TEXT, LOW]


def test_model_that_a_loader_waits_for_comes_first() -> None:
    assert need(awaited=[LOW], named=[VAE, LOW]).order()[:2] == [LOW, VAE]


def test_what_comfyui_has_loaded_is_not_brought_again_until_a_loader_asks() -> None:
    assert VAE not in need(named=[VAE, TEXT], loaded=[VAE]).order()
    assert need(awaited=[VAE], named=[VAE, TEXT], loaded=[VAE]).order()[0] == VAE


def test_nothing_is_removed_for_a_model_that_no_job_names() -> None:
    assert need(named=[VAE]).removable_for(OTHER, LAST_USED) == []


def test_models_of_no_job_go_first_the_least_recently_used_before_the_others() -> None:
    used = {**LAST_USED, OTHER: -1.0}

    assert need(named=[HIGH]).removable_for(HIGH, used) == [OTHER, VAE, TEXT, LOW]


def test_within_a_job_what_was_loaded_goes_next() -> None:
    state = need(named=[VAE, TEXT, HIGH, LOW], loaded=[TEXT, VAE])

    assert state.removable_for(LOW, LAST_USED) == [OTHER, VAE, TEXT]


def test_what_a_job_will_load_goes_only_for_a_loader_that_waits_the_last_first() -> None:
    state = need(awaited=[VAE], named=[VAE, TEXT, HIGH, LOW], loaded=[])

    assert state.removable_for(VAE, LAST_USED) == [OTHER, LOW, HIGH, TEXT]


@pytest.mark.parametrize("wanted", [VAE, LOW])
def test_no_model_goes_that_a_loader_waits_for(wanted: Path) -> None:
    state = need(awaited=[VAE, LOW], named=[VAE, TEXT, LOW], loaded=[TEXT])

    assert not {VAE, LOW} & set(state.removable_for(wanted, LAST_USED))


def test_what_an_earlier_worker_left_is_not_brought_and_may_leave() -> None:
    old = Path("old")
    need = Need(awaited=[], named=[HIGH], listed=[VAE, HIGH], loaded=(), left=[old])

    assert old not in need.order()
    assert need.removable_for(HIGH, {VAE: 1.0, HIGH: 2.0, old: 0.0}) == [old, VAE]
    assert need.removable_for(HIGH, {VAE: 1.0, HIGH: 2.0, old: 3.0}) == [VAE, old]
