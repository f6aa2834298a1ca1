"""Which waiting job runs next, and on which worker."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from handler.settings import Settings
from runtime.lambda_host.affinity import choose, models_in
from tests import workflows
from tests.workflows import event


@dataclass
class Job:
    models: frozenset[str]
    overtaken: int = 0


A, B, NONE = frozenset({"a.safetensors"}), frozenset({"b.safetensors"}), frozenset[str]()


def run_in_order(names: Sequence[frozenset[str]], *, may_overtake: int) -> list[frozenset[str]]:
    """The models of the jobs in the order in which one worker runs them."""
    waiting, loaded, order = [Job(models) for models in names], NONE, []
    while waiting:
        job, _ = choose(waiting, [loaded], may_overtake=may_overtake)
        for other in waiting[:job]:
            other.overtaken += 1
        loaded = waiting.pop(job).models
        order.append(loaded)
    return order


def test_job_whose_models_are_loaded_goes_first() -> None:
    assert choose([Job(A), Job(B)], [B], may_overtake=8) == (1, 0)


def test_worker_that_has_loaded_the_models_of_a_job_gets_it() -> None:
    assert choose([Job(B)], [A, B], may_overtake=8) == (0, 1)


@pytest.mark.parametrize("loaded", [NONE, frozenset({"c.safetensors"})])
def test_oldest_job_goes_first_if_the_models_of_none_are_loaded(loaded: frozenset[str]) -> None:
    assert choose([Job(A), Job(B), Job(NONE)], [loaded, loaded], may_overtake=8) == (0, 0)


def test_jobs_that_alternate_are_run_together() -> None:
    order = run_in_order([A, B] * 10, may_overtake=Settings().jobs_may_overtake)

    # Two loads of models instead of twenty.
    assert order == [A] * 10 + [B] * 10


def test_no_job_is_overtaken_more_often_than_it_may() -> None:
    order = run_in_order([B, *[A] * 20], may_overtake=100)
    assert order[0] == B

    # The worker has loaded A, and more jobs of A come than may overtake.
    order = run_in_order([A, B, *[A] * 20], may_overtake=3)
    assert order.index(B) == 4


def test_jobs_stay_in_their_order_if_none_may_be_overtaken() -> None:
    assert run_in_order([A, B] * 3, may_overtake=0) == [A, B] * 3


def test_models_are_found_in_a_request_and_in_a_message_of_a_queue() -> None:
    request = json.dumps(event(workflows.wan()))
    message = json.dumps({"Records": [{"body": request}]})
    within_a_message = json.dumps({"Records": [{"body": json.dumps({"Message": request})}]})

    models = models_in(request.encode())

    assert "wan_2.1_vae.safetensors" in models
    assert models_in(message.encode()) == models
    assert models_in(within_a_message.encode()) == models
    assert models_in(b'{"text": "a cat"}') == frozenset()
