"""`serve` through infra/compose.yaml: queue, HTTP API and its page."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
import yaml

from infra.image_test.aws import BUCKET, REGION, Aws
from infra.image_test.containers import LOG_LINES, PROJECT, free_port
from infra.image_test.jobs import check_completed, small_job

TOKEN = "token-of-the-image-test"
WAIT_S = 240
COMPOSE = PROJECT / ".venv" / "bin" / "podman-compose"


def compose(environ: dict[str, str], profile: str, *words: str) -> str:
    done = subprocess.run(
        [
            *(COMPOSE, "--file", "infra/compose.yaml", "--project-name", "lambda-comfyui-test"),
            *("--profile", profile, *words),
        ],
        cwd=PROJECT,
        env=os.environ | environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{words[0]}: {done.stdout}{done.stderr}"
    return done.stdout


class Host:
    """The service `cpu` with its queue."""

    def __init__(self, url: str, sqs: Any, queue_url: str) -> None:
        self.url, self.sqs, self.queue_url = url, sqs, queue_url

    def get(self, path: str, token: str = TOKEN) -> requests.Response:
        headers = {"Authorization": f"Bearer {token}"}
        return requests.get(f"{self.url}{path}", headers=headers, timeout=60)

    def is_ready(self) -> bool:
        try:
            return self.get("/ready").status_code == 200
        except requests.ConnectionError:
            return False

    def result(self, request_id: str) -> Any:
        return self.get(f"/result/{request_id}").json()


@pytest.fixture(scope="module")
def host(aws: Aws) -> Iterator[Host]:
    sqs = aws.client("sqs")
    queue_url = sqs.create_queue(QueueName="jobs")["QueueUrl"]
    port = free_port()
    environ = {
        "API_TOKEN": TOKEN,
        "PORT": str(port),
        "QUEUE_URL": queue_url,
        "AWS_ENDPOINT_URL_SQS": aws.url,
        "AWS_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "S3_BUCKET_NAME": BUCKET,
        "S3_ENDPOINT_URL": aws.url,
        "S3_REGION": REGION,
    }
    try:
        compose(environ, "cpu", "up", "--detach")
        started = Host(f"http://127.0.0.1:{port}", sqs, queue_url)
        wait_until(started.is_ready)
        yield started
    except BaseException:
        print("\n".join(compose(environ, "cpu", "logs").splitlines()[-LOG_LINES:]))
        raise
    finally:
        compose(environ, "cpu", "down", "--volumes")


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < until, f"not true after {WAIT_S} s: {condition}"
        time.sleep(0.5)


def test_message_of_the_queue_becomes_a_file_in_the_bucket(host: Host, aws: Aws) -> None:
    job = small_job("compose-queue")
    host.sqs.send_message(QueueUrl=host.queue_url, MessageBody=json.dumps(job))

    wait_until(lambda: host.result("compose-queue").get("status") in ("completed", "failed"))

    check_completed(host.result("compose-queue"), "x_00001_.png")
    aws.check_stored("compose-queue/x_00001_.png")


def test_api_runs_a_job_for_callers_with_the_token(host: Host, aws: Aws) -> None:
    answer = requests.post(
        f"{host.url}/generate/sync",
        json=small_job("compose-api"),
        headers={"Authorization": f"Bearer {TOKEN}"},
        timeout=WAIT_S,
    )

    check_completed(answer.json(), "x_00001_.png")
    aws.check_stored("compose-api/x_00001_.png")
    assert host.get("/jobs", token="wrong").status_code == 401


def test_page_of_the_api_is_there(host: Host) -> None:
    page = host.get("/docs")

    assert page.status_code == 200
    assert page.headers["Content-Type"].startswith("text/html")
    assert "/generate/sync" in page.text or "openapi.json" in page.text


def test_gpu_profile_asks_for_a_gpu() -> None:
    """No more than that: there is no GPU where images are built."""
    config = compose({"API_TOKEN": TOKEN}, "gpu", "config")

    gpu = yaml.safe_load(config)["services"]["gpu"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert gpu["read_only"] is True
