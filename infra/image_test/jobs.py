"""The jobs that the images run, and what a response must be."""

import json
from typing import Any

from infra.image_test.containers import PROJECT

SAMPLES = PROJECT / "events" / "samples"


def small_job(request_id: str, **fields: Any) -> dict[str, Any]:
    """The documented small workflow, which needs no weights."""
    workflow = {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 77},
        },
        "2": {
            "class_type": "SaveImage",
            "inputs": {"images": ["1", 0], "filename_prefix": "sub/x"},
        },
    }
    return {"input": {"request_id": request_id, "workflow_json": workflow, **fields}}


def wan_job(request_id: str, **fields: Any) -> dict[str, Any]:
    """The 14 nodes of the Wan 2.2 text-to-video workflow, small, for stand-in weights."""
    event: dict[str, Any] = json.loads((SAMPLES / "direct_wan22_t2v_small.json").read_text())
    event["input"] |= {"request_id": request_id, **fields}
    return event


def check_completed(response: Any, filename: str) -> None:
    """Print the response in a line. Fails unless the job completed with this one file."""
    assert response["status"] == "completed", json.dumps(response, indent=2)
    names = [output["filename"] for output in response["output"]]
    total_s = response["timings"]["total_ms"] / 1000
    print(f"{response['id']} {response['status']} after {total_s:.1f} s: {', '.join(names)}")
    assert names == [filename]
