"""Which workers have a score that is far from those of the fleet's equal GPUs."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping

from runtime.fleet.registry import Worker
from runtime.score_deviation import deviation


def score_warnings(workers: Iterable[Worker]) -> Mapping[int, str]:
    """What is wrong with the scores of workers, by their ids; those without a warning have none.

    Scores of the same GPU model and workflow are compared with their median. Of an even number it
    is the higher one of the middle two: of two GPUs, the slower one is warned about.
    """
    named = [(worker.id, each) for worker in workers for each in worker.benchmarks if each.gpu]
    scores = defaultdict(list)
    for _, each in named:
        scores[each.gpu, each.workflow_hash].append(each.score)
    medians = {key: statistics.median_high(values) for key, values in scores.items()}
    warnings = {}
    for worker_id, each in named:
        key = each.gpu, each.workflow_hash
        of = f"the median of {len(scores[key])} GPUs of the fleet, {each.gpu}"
        if warning := deviation(each.score, medians[key], of):
            warnings[worker_id] = warning
    return warnings
