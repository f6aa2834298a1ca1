"""Every kind of output of a real ComfyUI reaches the response, and its file the job's folder."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from events.contract import response_problems
from handler.artifacts import Collector
from tests import workflows
from tests.conftest import run

pytestmark = pytest.mark.usefixtures("comfyui")


def named(item: Any) -> str:
    """What TestUi gives as its result: one item of a list of files."""
    return json.dumps({"things": [item]})


def test_image_lands_in_the_folder_of_its_request() -> None:
    response = run(workflows.image("sub/pic"), request_id="my-job 1")

    assert response["status"] == "completed"
    assert response["id"] == "my-job 1"
    (item,) = response["output"]
    assert item["subfolder"] == "sub"
    assert item["output_type"] == "images"
    assert item["node_id"] == "2"
    assert item["local_path"].endswith(f"/output/my-job 1/{item['filename']}")
    assert Path(item["local_path"]).read_bytes().startswith(b"\x89PNG")
    assert "url" not in item
    assert "upload_error" not in item


def test_response_follows_the_published_schema() -> None:
    response = run(workflows.many_outputs())

    assert response_problems(response) == []
    assert response["message"] == "Processing complete."


def test_history_entry_of_comfyui_is_passed_on_unchanged() -> None:
    response = run(workflows.image())

    (prompt_id,) = set(response["comfyui_response"]) - {"execution_details"}
    entry = response["comfyui_response"][prompt_id]
    assert set(entry) == {"prompt", "outputs", "status", "meta"}
    assert entry["prompt"][1] == prompt_id
    assert entry["status"]["status_str"] == "success"


def test_execution_details_have_the_order_of_the_nodes() -> None:
    details = run(workflows.video())["comfyui_response"]["execution_details"]

    assert details["nodes_executed"] == ["1", "2", "3"]
    assert details["completed"] is True
    assert details["error"] is None


def test_video_is_returned() -> None:
    (item,) = run(workflows.video())["output"]

    assert item["filename"].endswith(".mp4")
    assert item["subfolder"] == "v"


def test_audio_is_returned() -> None:
    workflow = {
        "1": workflows.node("EmptyAudio", duration=1.0, sample_rate=44100, channels=2),
        "2": workflows.node("SaveAudio", audio=["1", 0], filename_prefix="sound"),
    }

    (item,) = run(workflow)["output"]

    assert item["output_type"] == "audio"
    assert Path(item["local_path"]).read_bytes().startswith(b"fLaC")


def test_text_is_returned_inline_and_as_a_file() -> None:
    (item,) = run(workflows.text("ein Tag ☃"))["output"]

    assert item["text"] == "ein Tag ☃"
    assert item["output_type"] == "text"
    assert Path(item["local_path"]).read_text() == "ein Tag ☃"


def test_outputs_of_all_nodes_are_returned_and_equal_names_do_not_collide() -> None:
    output = run(workflows.many_outputs())["output"]

    assert len(output) == 7
    assert len({item["local_path"] for item in output}) == 7
    assert all(Path(item["local_path"]).is_file() for item in output)
    assert {item["subfolder"] for item in output} == {"a", "b", "w"}


def test_every_shape_of_output_is_kept() -> None:
    output = run(workflows.one("TestOutputs"))["output"]

    kinds = [item["output_type"] for item in output]
    assert kinds == ["gifs", "3d", "audio", "result", "text", "text", "count"]
    by_kind = {item["output_type"]: item for item in output}
    assert Path(by_kind["gifs"]["local_path"]).read_text() == "one/same.bin"
    assert Path(by_kind["3d"]["local_path"]).read_text() == "two/same.bin"
    assert Path(by_kind["result"]["local_path"]).read_text() == "three/path.glb"
    assert by_kind["result"]["subfolder"] == "three"
    assert by_kind["count"]["text"] == "42"


def test_file_that_a_node_named_but_never_wrote_fails_the_job_for_good() -> None:
    response = run(workflows.one("TestUi", ui=named({"filename": "never-written.png"})))

    assert response_problems(response) == []
    assert response["status"] == "failed"
    assert response["error"]["type"] == "ExecutionFailed"
    assert response["error"]["retryable"] is False
    assert response["error"]["node_id"] == "7"
    assert "never-written.png: the node named a file that does not exist" in response["message"]
    assert "No such file" in response["output"][0]["upload_error"]


def test_file_outside_of_comfyuis_folders_is_never_taken() -> None:
    outside = {"filename": "passwd", "subfolder": "../../../../../../../../etc"}

    response = run(workflows.one("TestUi", ui=named(outside)))

    assert response["error"]["type"] == "ExecutionFailed"
    (item,) = response["output"]
    assert "outside the output folder" in item["upload_error"]
    assert not Path(item["local_path"]).exists()


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop"])
def test_only_a_regular_file_is_a_result(kind: str) -> None:
    response = run(workflows.one("TestIrregular", kind=kind), return_outputs_as_base64=True)

    assert response_problems(response) == []
    assert response["error"]["type"] == "ExecutionFailed"
    assert "never a result" in response["output"][0]["upload_error"]


def test_file_that_is_written_after_its_node_has_ended_is_a_result() -> None:
    workflow = workflows.one("TestLate") | {"8": workflows.node("TestLateFile", after=["7", 0])}

    response = run(workflow)

    assert response["status"] == "completed"
    assert {Path(item["local_path"]).read_text() for item in response["output"]} == {"late"}


@pytest.mark.parametrize("node", ["TestBroadcast", "TestOddProgress"])
def test_odd_messages_of_custom_nodes_do_not_disturb_the_job(node: str) -> None:
    response = run(workflows.one(node))

    assert response["status"] == "completed"
    assert response_problems(response) == []


@pytest.mark.parametrize(
    "item",
    [
        {"filename": "", "type": "output"},
        {"filename": None},
        {"a": {"b": []}},
        [1, [2]],
        0,
        "",
    ],
)
def test_odd_items_of_custom_nodes_keep_the_documented_shape(item: Any) -> None:
    response = run(workflows.one("TestUi", ui=json.dumps({"things": [item]})))

    assert response["status"] == "completed"
    assert response_problems(response) == []
    assert len(response["output"]) == 1


@pytest.mark.parametrize(
    "item",
    [
        {"filename": "x.png", "type": None},
        {"filename": "x.png", "type": 5, "subfolder": 7},
        {"filename": "x.png", "type": ["output"]},
        {"filename": "x\0.png"},
        {"filename": "x" * 300},
    ],
)
def test_odd_names_of_missing_files_keep_the_documented_shape(item: Any) -> None:
    response = run(workflows.one("TestUi", ui=named(item)))

    assert response["error"]["type"] == "ExecutionFailed"
    assert response_problems(response) == []
    assert len(response["output"]) == 1


def test_run_without_any_output_says_so() -> None:
    response = run(workflows.one("TestUi", ui="{}"))

    assert response["output"] == []
    assert "none of its nodes gave an output" in response["warnings"][0]


def test_node_that_writes_one_file_again_and_again_changes_no_result_of_an_earlier_job() -> None:
    first = run(workflows.one("TestFixedName", text="first", name="fixed.png"))
    second = run(workflows.one("TestFixedName", text="second one", name="fixed.png"))

    texts = [Path(r["output"][0]["local_path"]).read_text() for r in (first, second)]
    assert texts == ["first", "second one"]


def test_file_that_changes_while_it_is_copied_is_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "big.bin").write_bytes(b"first")
    copy = os.copy_file_range

    def copy_and_rewrite(source: int, target: int, count: int) -> int:
        copied = copy(source, target, count)
        os.utime(tmp_path / "big.bin", ns=(0, 0))
        return copied

    monkeypatch.setattr(os, "copy_file_range", copy_and_rewrite)
    collector = Collector("job", {"output": tmp_path}, include_temp=False)

    (artifact,) = collector.collect("1", {"files": [{"filename": "big.bin"}]})

    assert "another job wrote the file" in artifact.problem
    assert not artifact.local_path.exists()


def test_file_is_copied_where_the_kernel_cannot_clone_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.bin").write_bytes(b"content")

    def refuse(*_: int) -> int:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    collector = Collector("job", {"output": tmp_path}, include_temp=False)

    (artifact,) = collector.collect("1", {"files": [{"filename": "a.bin"}]})

    assert artifact.problem == ""
    assert artifact.local_path.read_bytes() == b"content"


def test_cached_repeat_returns_the_files_of_the_first_run() -> None:
    workflow = workflows.image("again")

    first, second = run(workflow), run(workflow)

    assert first["output"][0]["filename"] == second["output"][0]["filename"]
    assert first["output"][0]["local_path"] != second["output"][0]["local_path"]
    files = [Path(response["output"][0]["local_path"]) for response in (first, second)]
    assert files[0].read_bytes() == files[1].read_bytes() != b""
    assert second["comfyui_response"]["execution_details"]["nodes_executed"] == []


def test_previews_are_left_out_unless_asked_for() -> None:
    without, asked = (
        run(workflows.preview()),
        run(workflows.preview(), return_temp_outputs=True),
    )

    assert without["output"] == []
    assert "return_temp_outputs" in without["warnings"][0]
    assert asked["output"][0]["type"] == "temp"
    assert Path(asked["output"][0]["local_path"]).is_file()


def test_random_int_placeholder_is_drawn_for_each_occurrence() -> None:
    workflow = workflows.image("r-__RANDOM_INT__")
    workflow["1"]["inputs"]["color"] = 3
    workflow["3"] = workflow["2"] | {"inputs": dict(workflow["2"]["inputs"])}

    response = run(workflow)

    first, second = (item["filename"] for item in response["output"])
    assert first.startswith("r-")
    assert first != second


def test_files_come_inline_when_asked_for() -> None:
    (item,) = run(workflows.image(), return_outputs_as_base64=True)["output"]

    assert item["base64"].startswith("iVBOR")


@pytest.mark.parametrize("request_id", ["../../etc", "..", "a/b", "x" * 200, "ü" * 200])
def test_request_id_never_leaves_the_output_folder(request_id: str) -> None:
    response = run(workflows.image(), request_id=request_id)

    path = Path(response["output"][0]["local_path"])
    assert response["id"] == request_id
    assert path.is_file()
    assert path.parent.parent.name == "output"
