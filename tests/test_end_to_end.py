"""The documented Wan 2.2 workflow, small, through the command line and AWS's own runtime client."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import pytest
import requests

from events.contract import response_problems
from handler.settings import PROJECT
from runtime.local_s3 import LocalS3
from tests import workflows
from tests.conftest import WebhookReceiver
from tests.workflows import event

pytestmark = [
    pytest.mark.usefixtures("comfyui"),
    pytest.mark.timeout(300),
]


def invoke(request: Any, *options: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "runtime", "invoke", "-e", "-", *options],
        input=request if isinstance(request, str) else json.dumps(request),
        cwd=PROJECT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def frames_of(film: bytes) -> tuple[str, int, int, int]:
    with av.open(io.BytesIO(film), "r") as container:
        stream = container.streams.video[0]
        pictures = list(container.decode(stream))
        return stream.codec_context.name, stream.width, stream.height, len(pictures)


def test_template_of_the_project_gives_variables_to_the_handler_and_to_comfyui(
    tmp_path: Path,
) -> None:
    text = (PROJECT / "template.yaml").read_text()
    # Folders of the test: another process may use /tmp/worker.
    for place in ("comfyui", "worker"):
        text = text.replace(f"_DIR: /tmp/{place}", f"_DIR: {tmp_path}/{place}")
    template = tmp_path / "template.yaml"
    template.write_text(text)
    shell = dict.fromkeys(("WORKER_DIR", "COMFYUI_DATA_DIR"), "")

    done = invoke(event(workflows.image()), "-t", str(template), **shell)

    response = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert response["status"] == "completed"
    assert response["timings"]["cold_start_ms"] > 0
    (item,) = response["output"]
    assert item["local_path"].startswith(f"{tmp_path}/comfyui/output/")
    assert (tmp_path / "worker" / "worker.lock").exists()
    omitted, *progress, file = done.stderr.splitlines()
    assert "omitted" in omitted
    assert "S3_BUCKET_NAME, JOBS_TABLE, JOBS_QUEUE_URL, DEAD_LETTER_QUEUE_URL" in omitted
    assert all(line.startswith("[") for line in progress), done.stderr
    assert file == f"file: {item['local_path']}"
    assert Path(item["local_path"]).is_file()


def test_exported_workflow_is_an_event_and_its_file_is_named_on_stderr() -> None:
    done = invoke(workflows.image())

    response = json.loads(done.stdout)
    assert response["status"] == "completed", done.stderr
    (item,) = response["output"]
    assert done.stderr.splitlines()[-1] == f"file: {item['local_path']}"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_documented_workflow_becomes_a_video_behind_a_url(
    s3: LocalS3, webhook_receiver: WebhookReceiver
) -> None:
    request = event(workflows.small_wan_sample(), webhook={"url": webhook_receiver.url})

    done = invoke(request, **s3.environ)

    response = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert response_problems(response) == []
    assert response["status"] == "completed"
    (item,) = response["output"]
    assert item["subfolder"] == "video"
    assert item["node_id"] == "98"
    film = requests.get(item["url"], timeout=30).content
    assert frames_of(film) == ("h264", 192, 192, 33)
    details = response["comfyui_response"]["execution_details"]
    assert len(details["nodes_executed"]) == 14
    assert details["nodes_executed"][-4:] == ["95", "97", "100", "98"]
    assert [update["value"] for update in details["progress_updates"]] == [1, 2, 1, 2]
    assert "stand-in weights" in response["warnings"][0]
    assert "stand-in weights" in done.stderr
    assert "96 KSamplerAdvanced  Sampler, high noise" in done.stderr
    assert webhook_receiver.bodies()[0]["output"] == response["output"]

    repeat = json.loads(invoke(request, **s3.environ).stdout)

    # The seed is drawn anew, so what hangs on it runs again; the rest comes from the cache.
    executed = repeat["comfyui_response"]["execution_details"]["nodes_executed"]
    assert executed == ["96", "95", "97", "100", "98"]


def test_failure_is_the_same_envelope_with_status_1() -> None:
    done = invoke(event(workflows.one("NoSuchNode"), request_id="job-1"))

    response = json.loads(done.stdout)
    assert done.returncode == 1
    assert response_problems(response) == []
    assert response["id"] == "job-1"
    assert response["error"]["type"] == "WorkflowRejected"


def test_crash_of_comfyui_reaches_the_caller_as_retryable() -> None:
    response = json.loads(invoke(event(workflows.one("TestKill"))).stdout)

    assert response["error"]["type"] == "WorkerUnavailable"
    assert response["error"]["retryable"] is True


@pytest.mark.parametrize(
    "workflow",
    [
        workflows.one("TestSleep", seconds=1000.0, deaf=False),
        workflows.one("TestHold", seconds=600),
    ],
    ids=["sleeps", "holds the interpreter lock"],
)
def test_response_comes_before_the_timeout_of_the_function(workflow: Any) -> None:
    """The host ends an invocation that is late, and answers with its own error."""
    done = invoke(event(workflow), "--timeout", "8")

    assert json.loads(done.stdout)["error"]["type"] == "DeadlineExceeded"
    assert done.returncode == 1


def test_no_secret_is_in_anything_that_is_written(s3: LocalS3) -> None:
    request = event(
        workflows.image(),
        s3={"secret_access_key": "canary-1", "access_key_id": "canary-2"},
        webhook={"url": "http://127.0.0.1:1/canary-3", "secret": "canary-4", "timeout": 1},
    )
    envelope = {"payload": request, "auth_data": {"signature": "canary-5"}}

    done = invoke(envelope, "--verbose", "--timeout", "60", **s3.environ)

    assert json.loads(done.stdout)["output"][0]["upload_error"]
    assert "canary" not in done.stdout + done.stderr


def test_sqs_batch_is_answered_with_what_goes_back() -> None:
    records = [
        {"messageId": name, "body": json.dumps(event(workflow)), "eventSource": "aws:sqs"}
        for name, workflow in (
            ("good", workflows.image()),
            ("broken", workflows.one("TestOutOfMemory")),
        )
    ]

    done = invoke({"Records": records})

    assert json.loads(done.stdout) == {"batchItemFailures": [{"itemIdentifier": "broken"}]}
    assert done.returncode == 1
    folder = Path(os.environ["COMFYUI_DATA_DIR"]) / "output"
    assert f"files: {folder}/<request id> (the answer to a queue" in done.stderr
