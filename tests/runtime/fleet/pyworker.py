"""The PyWorker of `vastai`, in front of an API wrapper, as its documentation shows it.

It runs in an environment of its own (infra/vastai-requirements.txt), with the variables that its
hosts set: python pyworker.py WRAPPER_PORT LOG_FILE
"""

import sys

from vastai import BenchmarkConfig, HandlerConfig, LogActionConfig, Worker, WorkerConfig


def main(port: int, log: str) -> None:
    generate = HandlerConfig(
        route="/generate/sync",
        max_queue_time=30.0,
        workload_calculator=lambda payload: 100.0,
        benchmark_config=BenchmarkConfig(dataset=[{"input": {}}], runs=2, concurrency=1),
    )
    config = WorkerConfig(
        model_server_url="http://127.0.0.1",
        model_server_port=port,
        model_log_file=log,
        model_healthcheck_url="/health",
        handlers=[generate],
        log_action_config=LogActionConfig(on_load=["BACKENDS_READY"]),
    )
    Worker(config).run()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
