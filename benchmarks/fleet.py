"""Simulates fleets with the router's own rule and changes of workers, beside other rules.

Scores are 0.5, 1, 2 and 4 in equal parts, job sizes exponential with a mean of 100, which a worker
of score 1 needs 100 seconds for. The router knows the size of a job as its cost. All rules get the
same jobs. The first fifth of them is not measured.

`share error` is the largest |share of work ÷ share of score - 1| of the four kinds of workers. The
central queue, which binds a job to a worker only when that is free, is the best that waits can be.

Run: python -m benchmarks.fleet            the tables, some minutes
     python -m benchmarks.fleet --quick    small fleets only
     python -m benchmarks.fleet --plots docs/images
"""

import argparse
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.fleet_rules import RULES, Central, Routed
from benchmarks.fleet_scaling import STEP_S, ScaledFleet, scaled
from benchmarks.fleet_simulation import Scenario
from runtime.fleet.scaling import ScalingRules

_LOADS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
_SHOWN = ("central queue", "proportional", "fastest", "least connections")


def p95(values: Sequence[float]) -> float:
    return sorted(values)[int(len(values) * 0.95)]


def print_targets(sizes: Sequence[int], loads: Sequence[float]) -> None:
    """The rule `proportional` against its targets."""
    print("| workers | load | share error | mean wait, s | central queue, s | ratio | µs |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for size in sizes:
        for load in loads:
            scenario = Scenario(size, load, jobs=max(300_000, 20 * size))
            routed, central = Routed(scenario).run(), Central(scenario).run()
            ratio = routed.mean_wait / central.mean_wait if central.mean_wait > 1e-3 else 1.0
            print(
                f"| {size} | {load:g} | {routed.share_error:.3f} | {routed.mean_wait:.2f}"
                f" | {central.mean_wait:.2f} | {ratio:.2f} | {routed.decision_us:.0f} |",
                flush=True,
            )


def print_rules(title: str, scenario: Scenario, rules: Sequence[str]) -> None:
    print(f"\n{title}\n")
    print(
        "| rule | share error | mean wait, s | p95 wait, s | mean response, s | p95 response, s |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for name in rules:
        result = RULES[name](scenario).run()
        print(
            f"| {name} | {result.share_error:.2f} | {result.mean_wait:.2f}"
            f" | {p95(result.waits):.1f} | {statistics.fmean(result.responses):.1f}"
            f" | {p95(result.responses):.1f} |",
            flush=True,
        )


def day(chance: random.Random) -> ScaledFleet:
    """A load with a night and a noon, and noise."""

    def load(second: float) -> float:
        mean = 4.0 - 3.5 * math.cos(2 * math.pi * second / 86_400)
        return max(chance.gauss(mean, 0.05 * mean), 0.0)

    return scaled(load, 24.0, ScalingRules(max_workers=40, min_workers=2, min_load=0.5))


def print_scaling() -> None:
    chance = random.Random(1)
    rules = ScalingRules(max_workers=40, min_workers=2)
    noisy = scaled(lambda _: max(chance.gauss(5.0, 0.25), 0.0), 24.0, rules)
    fleet = day(chance)
    hours = STEP_S / 3600
    short = sum(load > active for load, active in zip(fleet.load, fleet.active, strict=True))
    print("\nScaling, workers of score 1, 24 hours\n")
    print("| load | wakes, sleeps, starts and stops | active hours | hours of load | time short |")
    print("| --- | --- | --- | --- | --- |")
    print(
        f"| 5, with 5 % noise | {noisy.changes} | {sum(noisy.active) * hours:.0f}"
        f" | {sum(noisy.load) * hours:.0f} | |"
    )
    print(
        f"| 0.5 at night, 7.5 at noon, with 5 % noise | {fleet.changes}"
        f" | {sum(fleet.active) * hours:.0f} | {sum(fleet.load) * hours:.0f}"
        f" | {short / len(fleet.load):.2%} |"
    )


def plot(folder: Path) -> None:
    """Two pictures: waits and shares by load, and the capacity of a day."""
    import matplotlib.pyplot as plt  # noqa: PLC0415 - takes a second

    figure, (waits, shares) = plt.subplots(1, 2, figsize=(10, 4))
    for name in _SHOWN:
        results = [RULES[name](Scenario(40, load, jobs=20_000)).run() for load in _LOADS]
        waits.plot(_LOADS, [max(each.mean_wait, 0.01) for each in results], marker="o", label=name)
        shares.plot(_LOADS, [each.share_error for each in results], marker="o", label=name)
    waits.set(xlabel="load", ylabel="mean wait, s", yscale="log", title="Waiting, 40 workers")
    shares.set(xlabel="load", ylabel="share error", title="Share of work against share of score")
    waits.legend()
    figure.tight_layout()
    figure.savefig(folder / "fleet_rules.png", dpi=90)

    fleet = day(random.Random(1))
    hours = [number * STEP_S / 3600 for number in range(len(fleet.load))]
    figure, axes = plt.subplots(figsize=(10, 4))
    axes.plot(hours, fleet.load, linewidth=0.5, label="load")
    axes.step(hours, fleet.active, where="post", label="active capacity")
    axes.step(hours, fleet.present, where="post", label="active and asleep")
    axes.set(xlabel="hour", ylabel="score", title="Capacity of a fleet in a day")
    axes.legend()
    figure.tight_layout()
    figure.savefig(folder / "fleet_scaling.png", dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="small fleets only")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw pictures instead")
    args = parser.parse_args()
    if args.plots:
        plot(args.plots)
        return
    print_targets((8, 40) if args.quick else (8, 40, 400, 10_000), (0.3, 0.8, 0.95))
    usual = Scenario(40, 0.8, jobs=40_000)
    print_rules("40 workers, load 0.8", usual, list(RULES))
    compared = ("central queue", "proportional", "fastest")
    print_rules("Bursts", replace(usual, is_bursty=True), compared)
    print_rules("Crashes", replace(usual, crashes=True, load=0.7), compared)
    print_rules("Scores that drift by 30 %", replace(usual, drifts=True), compared)
    print_rules("The cost of a job says nothing", replace(usual, knows_cost=False), compared)
    print_scaling()


if __name__ == "__main__":
    main()
