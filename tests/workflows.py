"""Workflows for the tests: small, without models, each run in milliseconds by the real ComfyUI."""

import json
from itertools import count
from typing import Any

from handler.settings import PROJECT

_colours = count(1)

Workflow = dict[str, Any]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def image(prefix: str = "test", colour: int | None = None) -> Workflow:
    """EmptyImage -> SaveImage; a new colour each time, so that nothing is cached by chance."""
    colour = next(_colours) if colour is None else colour
    return {
        "1": node("EmptyImage", width=64, height=64, batch_size=1, color=colour),
        "2": node("SaveImage", images=["1", 0], filename_prefix=prefix),
    }


def video(frames: int = 5) -> Workflow:
    return {
        "1": node("EmptyImage", width=64, height=48, batch_size=frames, color=next(_colours)),
        "2": node("CreateVideo", images=["1", 0], fps=16),
        "3": node(
            "SaveVideo", video=["2", 0], filename_prefix="v/clip", format="auto", codec="auto"
        ),
    }


def text(value: str = "a caption") -> Workflow:
    return {
        "1": node("PrimitiveString", value=value),
        "2": node("PreviewAny", source=["1", 0]),
    }


def preview() -> Workflow:
    return {
        "1": node("EmptyImage", width=64, height=64, batch_size=1, color=next(_colours)),
        "2": node("PreviewImage", images=["1", 0]),
    }


def many_outputs() -> Workflow:
    return {
        "1": node("EmptyImage", width=64, height=64, batch_size=3, color=next(_colours)),
        "2": node("SaveImage", images=["1", 0], filename_prefix="a/same"),
        "3": node("SaveImage", images=["1", 0], filename_prefix="b/same"),
        "4": node(
            "SaveAnimatedWEBP",
            images=["1", 0],
            filename_prefix="w/anim",
            fps=4,
            lossless=True,
            quality=80,
            method="fastest",
        ),
    }


def one(class_type: str, **inputs: Any) -> Workflow:
    return {"7": node(class_type, **inputs)}


def small_wan_sample() -> Workflow:
    """The workflow that `make run` runs second."""
    path = PROJECT / "events" / "samples" / "direct_wan22_t2v_small.json"
    workflow: Workflow = json.loads(path.read_text())["input"]["workflow_json"]
    return workflow


def wan(width: int = 64, height: int = 64, frames: int = 5, steps: int = 4) -> Workflow:
    """The documented Wan 2.2 workflow, made small."""
    path = PROJECT / "events" / "samples" / "direct_wan22_t2v.json"
    workflow: Workflow = json.loads(path.read_text())["input"]["workflow_json"]
    workflow["104"]["inputs"] |= {"width": width, "height": height, "length": frames}
    workflow["96"]["inputs"] |= {"steps": steps, "end_at_step": steps // 2}
    workflow["95"]["inputs"] |= {"steps": steps, "start_at_step": steps // 2}
    return workflow


def event(workflow: Any, **given: Any) -> dict[str, Any]:
    return {"input": {"workflow_json": workflow, **given}}
