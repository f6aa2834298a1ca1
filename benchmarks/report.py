"""The table that every comparison prints: p50 and p90 of each side, and the ratio of the p50s."""

from statistics import median
from typing import TextIO


def p90(values: list[float]) -> float:
    """The smallest value that at least 90 % of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[-(-9 * len(ordered) // 10) - 1]


def print_table(
    sides: dict[str, list[float]], targets: dict[str, float], file: TextIO | None = None
) -> None:
    """One line per side, in milliseconds. The ratio is p50 divided by the first side's p50."""
    width = max(map(len, sides))
    base = median(next(iter(sides.values())))
    print(f"{'':{width}}  {'p50 ms':>9}  {'p90 ms':>9}  {'ratio':>6}  target", file=file)
    for name, values in sides.items():
        p50 = median(values)
        line = f"{name:{width}}  {p50:9.1f}  {p90(values):9.1f}  {p50 / base:6.2f}"
        if name in targets:
            verdict = "met" if p50 / base <= targets[name] else "MISSED"
            line += f"  <= {targets[name]:g}: {verdict}"
        print(line, file=file)
