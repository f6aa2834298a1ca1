"""The real SAM CLI with the unmodified template.yaml and the image, against podman's socket."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from infra.image_test.aws import REGION, Aws
from infra.image_test.containers import LOG_LINES, PROJECT, free_port, podman
from infra.image_test.jobs import check_completed, small_job, wan_job

SAM = PROJECT / ".venv-sam" / "bin" / "sam"
START_S = 240
STOP_S = 60
# The two prompts of the Wan workflow take a minute on two idle cores, and more on busy ones.
JOB_S = 1800
# For these, SAM CLI sets the logical ids of resources that only a deployed stack has.
VARIABLES = {
    "ComfyUI": {
        "JOBS_TABLE": None,
        "JOBS_QUEUE_URL": None,
        "DEAD_LETTER_QUEUE_URL": None,
        "HOME": "/tmp",
    }
}


@pytest.fixture(scope="module")
def docker_host(folder: Path) -> Iterator[str]:
    address = f"unix://{folder}/podman.sock"
    with (folder / "service.log").open("wb") as log:
        service = subprocess.Popen(
            ["podman", "system", "service", "--time", "0", address], stdout=log, stderr=log
        )
    yield address
    service.terminate()
    service.wait(STOP_S)
    # SAM CLI leaves an image with its emulator.
    podman("rmi", "--force", "--ignore", "docker.io/library/lambda-comfyui:rapid-x86_64")


class Sam:
    """SAM CLI's words and environment for one image."""

    def __init__(self, docker_host: str, folder: Path, image: str, outbound: str) -> None:
        variables = folder / "env.json"
        variables.write_text(json.dumps(VARIABLES))
        self.options = [
            *("ComfyUI", "--template", "template.yaml", "--skip-pull-image"),
            *("--env-vars", str(variables), "--parameter-overrides"),
            *(f"ImageUri={image}", f"OutboundAllow={outbound}", f"TimeoutSeconds={JOB_S}"),
        ]
        self.environ = os.environ | {
            "DOCKER_HOST": docker_host,
            "SAM_CLI_TELEMETRY": "0",
            "AWS_DEFAULT_REGION": REGION,
            "SAM_CLI_CONTAINER_CONNECTION_TIMEOUT": str(START_S),
        }

    def invoke(self, event: Path, log: Path) -> Any:
        with log.open("w") as stderr:
            done = subprocess.run(
                [SAM, "local", "invoke", *self.options, "--event", event],
                cwd=PROJECT,
                env=self.environ,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                check=False,
            )
        if done.returncode:
            pytest.fail(f"sam local invoke ended with status {done.returncode}\n{tail(log)}")
        return json.loads(done.stdout[done.stdout.index("{") :])

    @contextmanager
    def start_lambda(self, log: Path) -> Iterator[Any]:
        """A boto3 client of `sam local start-lambda`, once it listens."""
        port = free_port()
        with log.open("w") as output:
            process = subprocess.Popen(
                [SAM, "local", "start-lambda", *self.options, "--port", str(port)],
                cwd=PROJECT,
                env=self.environ,
                stdout=output,
                stderr=output,
            )
        try:
            wait_for_line(log, "Running on", process)
            yield boto3.client(
                "lambda",
                endpoint_url=f"http://127.0.0.1:{port}",
                region_name=REGION,
                aws_access_key_id="x",
                aws_secret_access_key="x",
                config=Config(read_timeout=JOB_S, retries={"total_max_attempts": 1}),
            )
        finally:
            process.terminate()
            process.wait(STOP_S)


def wait_for_line(log: Path, text: str, process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + START_S
    while text not in log.read_text():
        if process.poll() is not None or time.monotonic() > until:
            pytest.fail(f"sam local start-lambda does not listen\n{tail(log)}")
        time.sleep(0.2)


def tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])


def test_sam_local_invoke_stores_the_file_of_the_small_workflow(
    docker_host: str, folder: Path, aws: Aws
) -> None:
    event = folder / "event.json"
    event.write_text(json.dumps(small_job("sam-invoke", s3=aws.s3_of_a_request)))
    log = folder / "sam-invoke.log"

    response = Sam(docker_host, folder, "lambda-comfyui:latest", aws.host).invoke(event, log)

    check_completed(response, "x_00001_.png")
    aws.check_stored("sam-invoke/x_00001_.png")


def test_sam_local_start_lambda_runs_the_small_and_the_wan_workflow(
    docker_host: str, folder: Path, aws: Aws, standins_image: str
) -> None:
    log = folder / "sam-start-lambda.log"
    image = standins_image.rpartition("/")[2]
    jobs = {
        "x_00001_.png": small_job("sam-small", s3=aws.s3_of_a_request),
        "ComfyUI_00001_.mp4": wan_job("sam-wan", s3=aws.s3_of_a_request),
    }

    with Sam(docker_host, folder, image, aws.host).start_lambda(log) as client:
        for filename, job in jobs.items():
            answer = client.invoke(FunctionName="ComfyUI", Payload=json.dumps(job))
            response = json.load(answer["Payload"])

            assert "FunctionError" not in answer, tail(log)
            check_completed(response, filename)
            aws.check_stored(f"{job['input']['request_id']}/{filename}")
