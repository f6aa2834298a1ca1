"""`GET /metrics`: how many jobs there are, how long they take, and what the worker does.

prometheus_client is imported with the first call.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from handler.api.dispatcher import WorkerReport
from handler.jobs.record import Status
from handler.worker_protocol import State

if TYPE_CHECKING:
    pass

# https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def render(
    counts: Mapping[Status, int],
    waiting: int | None,
    usual_run_s: float | None,
    worker: WorkerReport | None,
    cost: float | None,
) -> str:
    """The metrics as text; what is not known is left out."""
    from prometheus_client import (  # noqa: PLC0415
        CollectorRegistry,
        Counter,
        Enum,
        Gauge,
        disable_created_metrics,
        generate_latest,
    )

    # They would be the times of this call.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry: CollectorRegistry = CollectorRegistry()
    jobs = Gauge("lambda_comfyui_jobs", "Jobs on record", ["status"], registry=registry)
    for status in Status:
        jobs.labels(status.name.lower()).set(counts.get(status, 0))
    if waiting is not None:
        gauge = Gauge("lambda_comfyui_queue_waiting", "Jobs that wait", registry=registry)
        gauge.set(waiting)
    if usual_run_s is not None:
        text = "Median time of the latest jobs that completed"
        Gauge("lambda_comfyui_job_seconds", text, registry=registry).set(usual_run_s)
    if cost is not None:
        text = "What the jobs have cost since the start, by PRICE_PER_HOUR"
        Counter("lambda_comfyui_cost", text, registry=registry).inc(cost)
    if worker is not None:
        states = Enum(
            "lambda_comfyui_worker",
            "1 for the state that the worker is in",
            states=[state.value for state in State],
            registry=registry,
        )
        states.state(worker.state.value)
        text = "Starts of ComfyUI since the worker began"
        Gauge("lambda_comfyui_worker_starts", text, registry=registry).set(worker.starts)
        if worker.score is not None:
            text = "100 / seconds of the worker's last benchmark"
            Gauge("lambda_comfyui_worker_score", text, registry=registry).set(worker.score)
        text = "Jobs that the worker has now"
        Gauge("lambda_comfyui_worker_jobs", text, registry=registry).set(worker.jobs)
    return generate_latest(registry).decode()
