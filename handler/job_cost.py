"""What a job has cost, by PRICE_PER_HOUR."""

from collections.abc import Mapping

# The worker starts for a job, and runs it. While the job is checked, or its files are uploaded, the
# worker can do another one.
_OCCUPIED = ("cold_start_ms", "generation_ms")
_MS_PER_HOUR = 3_600_000


def cost_of(timings: Mapping[str, float], price_per_hour: float | None) -> float | None:
    """The price of the time for which the job with these `timings` has occupied its worker.

    None without a price. It has the currency of the price.
    """
    if price_per_hour is None:
        return None
    return round(price_per_hour * sum(timings[name] for name in _OCCUPIED) / _MS_PER_HOUR, 8)
