"""Which scores a router finds too far from those of equal GPUs."""

import pytest

from runtime.fleet.deviations import score_warnings
from runtime.fleet.registry import Benchmarked, Status, Worker


def worker(number: int, *scores: float, gpu: str = "NVIDIA L4", workflow: str = "a") -> Worker:
    return Worker(
        id=number,
        url=f"http://worker-{number}",
        status=Status.READY,
        score=sum(scores),
        joined_at=0.0,
        reported_at=0.0,
        benchmarks=tuple(Benchmarked(gpu, workflow, score) for score in scores),
    )


@pytest.mark.parametrize(
    ("scores", "warned"),
    [
        ([1.0], []),
        ([1.0, 0.81], []),
        ([1.0, 0.79], [2]),
        ([0.7, 1.0], [1]),
        ([1.0, 1.05, 0.95, 1.35], [4]),
        ([1.0, 1.0, 0.5, 0.5], [3, 4]),
    ],
)
def test_score_far_from_the_median_of_its_equals_is_named(
    scores: list[float], warned: list[int]
) -> None:
    workers = [worker(number, score) for number, score in enumerate(scores, start=1)]

    assert list(score_warnings(workers)) == warned


def test_other_gpus_and_other_workflows_are_not_compared() -> None:
    others = [worker(2, 4.0, gpu="NVIDIA L40S"), worker(3, 8.0, workflow="b"), worker(4)]

    assert score_warnings([worker(1, 1.0), *others]) == {}


def test_one_slow_gpu_of_a_worker_is_found() -> None:
    workers = [worker(1, 1.0, 1.0), worker(2, 1.0, 0.5)]

    assert score_warnings(workers) == {
        2: "score 0.5 is 50% below 1, the median of 4 GPUs of the fleet, NVIDIA L4:"
        " check its temperature, power limit and configuration"
    }


def test_gpu_without_a_name_is_not_compared() -> None:
    assert score_warnings([worker(1, 1.0, gpu=""), worker(2, 0.5, gpu="")]) == {}
