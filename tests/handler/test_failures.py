"""What goes wrong in a real ComfyUI comes back as the documented envelope, with cause and fix."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from events.contract import response_problems
from handler.settings import PROJECT
from tests import worker, workflows
from tests.conftest import current_client, run, when_comfyui, worker_status
from tests.processes import wait_until
from tests.workflows import event

pytestmark = pytest.mark.usefixtures("comfyui")

# A second handler process: an event on stdin, the log and then the response on stdout.
OTHER_HANDLER = """
import json, sys
from handler.app import lambda_handler
print(json.dumps(lambda_handler(json.load(sys.stdin), None)))
"""


def failed(response: dict[str, Any], type_: str, *, retryable: bool) -> str:
    """Hold that this is the envelope of a failure, and return its message."""
    assert response_problems(response) == []
    assert response["status"] == "failed"
    assert response["error"]["type"] == type_
    assert response["error"]["retryable"] is retryable
    assert response["error"]["message"] == response["message"]
    message: str = response["message"]
    return message


def works() -> bool:
    return bool(run(workflows.image())["status"] == "completed")


def comfyui_pid() -> int:
    return worker.comfyui_pid(worker_status())


def test_unknown_node_class_is_named() -> None:
    response = run(workflows.one("NoSuchNode"))

    message = failed(response, "WorkflowRejected", retryable=False)
    assert "node 7" in message
    assert "'NoSuchNode' is not installed" in message
    assert response["error"]["node_id"] == "7"


def test_missing_model_lists_what_is_there() -> None:
    workflow = workflows.wan()
    workflow["92"]["inputs"]["vae_name"] = "no_such_vae.safetensors"

    response = run(workflow)

    message = failed(response, "WorkflowRejected", retryable=False)
    assert "node 92 (VAELoader), input 'vae_name'" in message
    assert "no_such_vae.safetensors" in message
    assert "wan_2.1_vae.safetensors" in message
    assert response["error"]["node_errors"]["92"]["class_type"] == "VAELoader"


def test_choice_that_a_long_list_lacks_is_explained_with_similar_ones() -> None:
    workflow = workflows.one("TestManyChoices", vae_name="Model_7.safetensors", model="m.pt")

    message = failed(run(workflow), "WorkflowRejected", retryable=False)

    # ComfyUI names the inputs of a node in no order.
    assert '"Model_7.safetensors" is not available; similar: wan/model_' in message
    assert "wan/model_07.safetensors" in message
    assert "put the file into models/vae of ComfyUI, or vae of MODELS_DIR" in message
    assert "available: wan/model_00.safetensors, " in message
    assert ", and 10 more" in message
    assert '"m.pt" is not available; nothing is installed for this input' in message


def test_one_bad_output_rejects_the_whole_workflow() -> None:
    workflow = workflows.image()
    workflow["9"] = workflows.node("SaveImage", images=["1", 5], filename_prefix="bad")

    response = run(workflow)

    failed(response, "WorkflowRejected", retryable=False)
    assert "9" in response["error"]["node_errors"]


@pytest.mark.parametrize(
    ("workflow", "words"),
    [
        ({"1": workflows.node("EmptyImage", width=64, height=64, batch_size=1, color=0)},
         "no output node"),
        ({"2": workflows.node("SaveImage", filename_prefix="x")}, "input 'images'"),
        ({"2": workflows.node("SaveImage", images=["1", 0], filename_prefix="x")}, "node '1'"),
        ({"1": workflows.node("ImageInvert", image=["3", 0]),
          "3": workflows.node("ImageInvert", image=["1", 0]),
          "2": workflows.node("SaveImage", images=["1", 0], filename_prefix="x")},
         "the links of the nodes 1, 3, 1 form a cycle"),
        ({"1": workflows.node("EmptyImage", width=-5, height=64, batch_size=1, color=0),
          "2": workflows.node("SaveImage", images=["1", 0], filename_prefix="x")}, "width"),
    ],
)  # fmt: skip
def test_graph_that_cannot_run_is_rejected_with_its_reason(
    workflow: dict[str, Any], words: str
) -> None:
    assert words in failed(run(workflow), "WorkflowRejected", retryable=False)


def test_node_that_raises_is_named_with_its_exception() -> None:
    response = run(workflows.image("before") | workflows.one("TestRaise", message="the reason"))

    message = failed(response, "ExecutionFailed", retryable=False)
    assert "node 7 (TestRaise)" in message
    assert "ValueError: the reason" in message
    assert response["error"]["node_id"] == "7"
    details = response["comfyui_response"]["execution_details"]
    assert details["completed"] is False
    assert details["error"] == message


def test_results_of_a_failed_run_are_kept_and_marked() -> None:
    workflow = workflows.one("TestRaise", message=["3", 0])
    workflow["3"] = workflows.node("TestFirst")

    response = run(workflow)

    failed(response, "ExecutionFailed", retryable=False)
    (item,) = response["output"]
    assert item["from_failed_run"] is True
    assert Path(item["local_path"]).read_text() == "first"


@pytest.mark.parametrize("beside", [{}, workflows.image("beside a cycle")])
def test_cycle_in_an_expanded_subgraph_is_a_failure_of_its_node(beside: dict[str, Any]) -> None:
    response = run(beside | workflows.one("TestCycle"))

    message = failed(response, "ExecutionFailed", retryable=False)
    assert "node 7 (TestCycle)" in message
    assert "cycle" in message
    assert response["comfyui_response"]["execution_details"]["completed"] is False


def test_history_entry_without_a_status_is_a_failure_within_the_contract() -> None:
    response = run(workflows.one("TestNoStatus"))

    message = failed(response, "ExecutionFailed", retryable=False)
    assert "no status" in message
    assert [item["text"] for item in response["output"]] == ["ran"]


@pytest.mark.parametrize("node", ["TestOutOfMemory", "TestAllocate"])
def test_out_of_memory_has_an_error_class_and_the_worker_continues(node: str) -> None:
    message = failed(run(workflows.one(node)), "OutOfMemory", retryable=True)

    assert f"({node}) ran out of memory" in message
    assert works()


def test_wrapped_out_of_memory_is_one_and_the_worker_goes_on() -> None:
    pid = comfyui_pid() if works() else 0

    response = run(workflows.one("TestWrapped", what="out of memory"))

    message = failed(response, "OutOfMemory", retryable=True)
    assert "TypeError: the sampler failed caused by torch.OutOfMemoryError: Allocation" in message
    assert works()
    assert comfyui_pid() == pid


@pytest.mark.parametrize(
    "workflow",
    [
        workflows.one("TestWrapped", what="value"),
        workflows.one("TestRaise", message="no idea what 'CUDA error: out of memory' should show"),
    ],
)
def test_words_of_a_prompt_are_no_fault_of_the_machine(workflow: dict[str, Any]) -> None:
    pid = comfyui_pid() if works() else 0

    failed(run(workflow), "ExecutionFailed", retryable=False)

    assert works()
    assert comfyui_pid() == pid


def test_fault_of_the_device_restarts_comfyui_and_the_job_can_be_retried() -> None:
    pid = comfyui_pid() if works() else 0

    response = run(workflows.one("TestWrapped", what="device fault"))

    message = failed(response, "WorkerUnavailable", retryable=True)
    assert "node 7 (TestWrapped) met a fault of the machine" in message
    assert response["error"]["node_id"] == "7"
    assert works()
    assert comfyui_pid() != pid


def test_failed_run_was_examined_by_comfyui_itself() -> None:
    response = run(workflows.one("TestRaise", message="the reason"))

    (entry,) = (
        entry for key, entry in response["comfyui_response"].items() if key != "execution_details"
    )
    name, data = entry["status"]["messages"][-1]
    assert (name, data["self_test"]) == ("execution_error", "")
    assert data["causes"] == [
        {
            "types": ["ValueError", "Exception", "BaseException"],
            "message": "the reason",
            "errno": None,
        }
    ]


def test_comfyui_that_dies_mid_job_fails_it_as_retryable_and_is_restarted() -> None:
    message = failed(run(workflows.one("TestKill")), "WorkerUnavailable", retryable=True)

    # Its first message may have been lost.
    assert re.search("died (while|before) the job ran", message)
    assert "signal: killed" in message
    assert "got prompt" in message
    assert works()


def is_silent() -> bool:
    """Whether a node keeps ComfyUI from answering."""
    try:
        requests.get(f"{current_client().base_url}/queue", timeout=1.0)
    except requests.Timeout:
        return True
    return False


@contextmanager
def other_handler(workflow: Any) -> Iterator["subprocess.Popen[str]"]:
    """A second handler process, whose job runs now."""
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER_HANDLER],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdin
    assert other.stdout
    with other, other.stdin, other.stdout:
        other.stdin.write(json.dumps(event(workflow)))
        other.stdin.close()
        assert any("node.started" in line for line in other.stdout)
        yield other


def test_job_queued_behind_the_one_that_kills_comfyui_is_completed() -> None:
    assert works()
    starts = worker_status().starts
    with other_handler(workflows.one("TestSleep", seconds=60.0, deaf=True)) as other:
        pid = comfyui_pid()
        with when_comfyui("queue_pending", lambda: os.kill(pid, signal.SIGKILL)):
            waiting = run(workflows.image())
        assert other.stdout
        killed = json.loads(other.stdout.read().splitlines()[-1])

    assert waiting["status"] == "completed"
    failed(killed, "WorkerUnavailable", retryable=True)
    assert worker_status().starts == starts + 1


def test_prompt_of_a_killed_handler_does_not_delay_the_next_job() -> None:
    assert works()
    # The prompt alone would outlast the next job's deadline.
    with other_handler(workflows.one("TestSleep", seconds=1000.0, deaf=False)) as other:
        other.kill()

    assert works()


def test_node_that_ends_the_thread_of_the_queue_is_noticed_before_the_deadline() -> None:
    assert works()

    message = failed(run(workflows.one("TestExit")), "WorkerUnavailable", retryable=True)

    assert "the thread that runs the queue has ended: SystemExit" in message
    assert works()


def test_comfyui_that_died_between_two_jobs_is_not_noticed_by_the_caller() -> None:
    assert works()
    os.kill(comfyui_pid(), signal.SIGKILL)

    assert works()


def test_deadline_interrupts_the_job_and_leaves_comfyui_usable() -> None:
    assert works()
    pid = comfyui_pid()

    response = run(workflows.one("TestSleep", seconds=1000.0, deaf=False), seconds=4.0)

    message = failed(response, "DeadlineExceeded", retryable=False)
    assert "node 7" in message
    assert works()
    assert comfyui_pid() == pid


@pytest.mark.slow
def test_job_that_ignores_the_interrupt_costs_comfyui_a_restart() -> None:
    assert works()
    pid = comfyui_pid()

    response = run(workflows.one("TestSleep", seconds=100.0, deaf=True), seconds=6.0)

    failed(response, "DeadlineExceeded", retryable=False)
    assert works()
    assert comfyui_pid() != pid


def test_node_that_keeps_comfyui_from_answering_is_ended_at_the_deadline() -> None:
    assert works()
    pid = comfyui_pid()

    response = run(workflows.one("TestHold", seconds=600), seconds=8.0)

    failed(response, "DeadlineExceeded", retryable=False)
    assert works()
    assert comfyui_pid() != pid


def test_comfyui_that_a_killed_handler_left_without_an_answer_is_replaced() -> None:
    assert works()
    pid = comfyui_pid()
    with other_handler(workflows.one("TestHold", seconds=600)) as other:
        assert wait_until(is_silent)
        other.kill()

    assert wait_until(lambda: worker_status().comfyui_pid not in (pid, None))
    assert works()


def test_job_behind_a_node_that_keeps_comfyui_from_answering_holds_its_deadline() -> None:
    assert works()
    with other_handler(workflows.one("TestHold", seconds=600)) as other:
        assert wait_until(is_silent)

        response = run(workflows.image(), seconds=8.0)

        other.kill()

    failed(response, "DeadlineExceeded", retryable=True)
    assert works()


def test_job_that_only_waits_does_not_end_the_one_that_runs() -> None:
    assert works()
    with other_handler(workflows.one("TestHold", seconds=8)) as other:
        assert wait_until(is_silent)

        response = run(workflows.image(), seconds=4.0)

        assert other.stdout
        running = json.loads(other.stdout.read().splitlines()[-1])

    failed(response, "DeadlineExceeded", retryable=True)
    assert running["status"] == "completed"


def test_verdict_of_a_comfyui_that_is_slow_to_answer_is_waited_for() -> None:
    assert works()
    with other_handler(workflows.one("TestHold", seconds=5)) as other:
        assert wait_until(is_silent)

        response = run(workflows.one("NoSuchNode"))

        assert other.stdout
        running = json.loads(other.stdout.read().splitlines()[-1])

    failed(response, "WorkflowRejected", retryable=False)
    assert running["status"] == "completed"


def test_run_whose_first_message_was_lost_counts_as_begun() -> None:
    assert works()
    with other_handler(workflows.one("TestHold", seconds=5)):
        assert wait_until(is_silent)

        # While the lock is held no WebSocket can be opened.
        current_client()._disconnect()
        response = run(workflows.one("TestSleep", seconds=60.0, deaf=False), seconds=15.0)

    failed(response, "DeadlineExceeded", retryable=False)


def test_expired_invocation_does_not_begin_the_job() -> None:
    response = run(workflows.image(), seconds=0.0)

    failed(response, "DeadlineExceeded", retryable=True)


def test_interrupt_from_outside_cancels_the_job() -> None:
    assert works()
    interrupt = f"{current_client().base_url}/interrupt"
    with when_comfyui("queue_running", lambda: requests.post(interrupt, timeout=5)):
        response = run(workflows.one("TestSleep", seconds=60.0, deaf=False))

    assert response["status"] == "cancelled"
    assert response["error"]["type"] == "Cancelled"
    assert response_problems(response) == []
