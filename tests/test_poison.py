"""Jobs that kill ComfyUI among good ones: they end for good soon, and the others do not pay.

All parts are real except SQS, which is moto's server.
"""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from runtime.local_s3 import LocalS3
from tests import workflows
from tests.aws import objects_in
from tests.processes import wait_until
from tests.test_queue_pipeline import Queues, machine, queues
from tests.workflows import event

__all__ = ["queues"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

GOOD, KILLERS = 8, 2
PATIENCE_S = 240.0


def test_job_that_kills_comfyui_twice_fails_for_good_and_costs_the_others_no_delivery(
    tmp_path: Path, queues: Queues, s3: LocalS3
) -> None:
    killers = [
        json.dumps(event(workflows.one("TestKill"), request_id=f"killer-{number}"))
        for number in range(KILLERS)
    ]
    good = [f"good-{number}" for number in range(GOOD)]
    bodies = [json.dumps(event(workflows.image(), request_id=name)) for name in good]
    for body in [bodies[0], killers[0], *bodies[1:3], killers[1], *bodies[3:]]:
        queues.send(body)

    with machine(tmp_path, "sole", queues, s3) as sole:
        assert wait_until(lambda: queues.count() == 0, PATIENCE_S), sole.log
        assert sole.process.poll() is None

    assert queues.dead_letters() == dict.fromkeys(killers, "KilledTheWorker")
    assert {key.partition("/")[0] for key in objects_in(s3) if key.endswith(".png")} == set(good)
    deliveries_again = Counter(
        re.findall(r'goes back to its queue.*"message_id":"([^"]+)"', sole.log)
    )
    # Each killer, and at most the job that was over when its result was lost in a killer's death.
    assert KILLERS <= len(deliveries_again) <= 3 * KILLERS
    assert set(deliveries_again.values()) == {1}
    (message,) = {
        each["error"]["message"].partition("\n")[0]
        for each in sole.events()
        if each["event"] == "job.failed" and each["error"]["type"] == "KilledTheWorker"
    }
    assert message.startswith("ComfyUI died twice while this job ran. ComfyUI ended with signal")
