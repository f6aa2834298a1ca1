"""`GET /metrics` of the router: the fleet in figures. prometheus_client is imported with it."""

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from runtime.fleet.registry import Status
from runtime.fleet.router import Router


def render(router: Router, now: float) -> str:
    """The figures as Prometheus reads them."""
    registry: CollectorRegistry = CollectorRegistry()
    workers = router.workers()
    count = Gauge("lambda_comfyui_fleet_workers", "Workers", ["status"], registry=registry)
    for status in Status:
        count.labels(status.value).set(sum(each.status is status for each in workers))
    held = Gauge("lambda_comfyui_fleet_requests", "Requests that workers have", registry=registry)
    held.set(sum(len(each.held) for each in workers))
    queue = router.waiting.queue(now)
    waiting = Gauge("lambda_comfyui_fleet_waiting", "Requests without a worker", registry=registry)
    waiting.set(queue.requests)
    oldest = Gauge(
        "lambda_comfyui_fleet_waiting_seconds", "Wait of the first of them", registry=registry
    )
    oldest.set(queue.oldest_s)
    load = Gauge("lambda_comfyui_fleet_load", "Cost of new requests a second", registry=registry)
    load.set(router.waiting.load(now))
    text = "Sum of the scores of the workers that are ready"
    capacity = Gauge("lambda_comfyui_fleet_capacity", text, registry=registry)
    capacity.set(sum(each.score for each in workers if each.status is Status.READY))
    return generate_latest(registry).decode()
