"""Which files a workflow may load: no results of other jobs, and no other file of the machine."""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from events.errors import WorkflowRejected
from handler.comfyui_version import ComfyUIVersion
from handler.input_files import LoadableFiles, check_files, mark_as_used
from tests.conftest import run, worker_status
from tests.processes import wait_until
from tests.workflows import Workflow, image, node, one

pytestmark = [
    pytest.mark.usefixtures("comfyui"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

LOADERS = [
    ("LoadImage", "image"),
    ("LoadImageMask", "image"),
    ("LoadImageOutput", "image"),
    ("LoadVideo", "file"),
    ("LoadLatent", "latent"),
    ("WebcamCapture", "image"),
]
LOADABLE = LoadableFiles(Path("/data/input"), Path("/data/output/mine"))
COMBO = [["a.png"], {"image_upload": True}]
LINE = ["STRING", {"default": ""}]
TEXT = ["STRING", {"multiline": True, "dynamicPrompts": True}]


@pytest.fixture(scope="module")
def others_file() -> str:
    """The path of another job's result, below the output folder."""
    item = run(image("others"), request_id="others-job")["output"][0]
    return str(item["filename"])


def load(class_type: str, input_name: str, text: Any) -> Workflow:
    more = {"width": 0, "height": 0, "capture_on_queue": True, "channel": "red"}
    return {
        "1": node(class_type, **{input_name: text}, **more),
        "2": node("PreviewAny", source=["1", 0]),
    }


def refusal(workflow: Workflow, **given: Any) -> str:
    response = run(workflow, **given)
    assert response["error"]["type"] == "WorkflowRejected", response
    assert response["comfyui_response"] == {}
    assert not response["error"]["retryable"]
    return str(response["error"]["message"])


@pytest.mark.parametrize(("class_type", "input_name"), LOADERS)
@pytest.mark.parametrize(
    "text",
    [
        "../output/{}",
        "sub/../../output/{}",
        "../output/{} [input]",
        "{output}/{}",
        "{} [output]",
        "others-job/{} [output]",
        "{} [temp]",
        "/etc/hostname",
    ],
)
def test_no_loader_reads_another_jobs_file(
    class_type: str, input_name: str, text: str, others_file: str
) -> None:
    output = worker_status().folders["output"]
    path = text.replace("{output}", str(output)).replace("{}", others_file)

    message = refusal(load(class_type, input_name, path))

    assert "LOAD_ANY_FILE=1" in message
    # The same words for a file that does not exist.
    absent = path.replace(others_file, "absent.png").replace("hostname", "absent")
    assert refusal(load(class_type, input_name, absent)) == message.replace(path, absent)


def test_no_path_hides_in_a_nested_value(others_file: str) -> None:
    hidden = {"image": f"{others_file} [output]", "mask": "", "normal": "", "recording": ""}
    workflow = load("Load3D", "image", hidden)
    workflow["1"]["inputs"]["model_file"] = "3d/model.glb"

    assert "node 1 (Load3D), input 'image'" in refusal(workflow)
    wrapped = load("LoadImage", "image", {"__value__": f"../output/{others_file}"})
    assert "node 1 (LoadImage), input 'image'" in refusal(wrapped)


def test_no_line_break_hides_a_path(others_file: str) -> None:
    refusal(load("LoadImage", "image", f"../output/\n/../{others_file}"))


def test_data_set_of_another_job_is_not_loaded() -> None:
    workflow = {
        "1": node("LoadTrainingDataset", folder_name="training_dataset"),
        "2": node("PreviewAny", source=["1", 0]),
    }

    assert "LoadTrainingDataset" in refusal(workflow)


@pytest.mark.parametrize("is_linked", [False, True])
def test_path_that_a_workflow_gives_to_a_node_is_no_result(
    others_file: str, *, is_linked: bool
) -> None:
    path: Any = f"others-job/{others_file}"
    workflow = {"1": node("Preview3D", model_file=path)}
    if is_linked:
        workflow |= {"0": node("StringConcatenate", string_a="others-job/", string_b=others_file)}
        workflow["0"]["inputs"]["delimiter"] = ""
        workflow["1"]["inputs"]["model_file"] = ["0", 0]
    old = worker_status().folders["output"] / path
    os.utime(old, (1, 1))

    output = run(workflow)["output"]

    assert path in [item["text"] for item in output]
    assert others_file not in [item["filename"] for item in output]


def test_setting_allows_every_file(monkeypatch: pytest.MonkeyPatch, others_file: str) -> None:
    monkeypatch.setenv("LOAD_ANY_FILE", "1")
    loaded = load("LoadImage", "image", f"{others_file} [output]")
    loaded["2"] = node("SaveImage", images=["1", 0], filename_prefix="again")

    assert run(loaded)["status"] == "completed"


def test_job_loads_input_files_and_files_of_its_own() -> None:
    first = run(image("own"), request_id="own-job")
    (own,) = first["output"]
    given = worker_status().folders["input"] / "given.png"
    given.write_bytes(Path(own["local_path"]).read_bytes())
    os.utime(given, (1, 1))
    workflow = {
        "1": node("LoadImage", image="given.png"),
        "2": node("LoadImage", image=f"own-job/{own['filename']} [output]"),
        "3": node("LoadImage", image="given.png [input]"),
        "4": node("ImageBatch", image1=["1", 0], image2=["2", 0]),
        "5": node("ImageBatch", image1=["4", 0], image2=["3", 0]),
        "6": node("SaveImage", images=["5", 0], filename_prefix="own"),
    }

    response = run(workflow, request_id="own-job")

    assert response["status"] == "completed"
    # Housekeeping counts from the last use; nodes compare the time of the last change.
    assert given.stat().st_atime > 1
    assert given.stat().st_mtime == 1


@pytest.mark.parametrize(
    ("text", "declared", "is_allowed"),
    [
        ("a.png", COMBO, True),
        ("sub/a.png", COMBO, True),
        ("/data/input/a.png", LINE, True),
        ("/data/output/mine/a.png", LINE, True),
        ("/data/output/other/a.png", LINE, False),
        ("/data/input/../output/a.png", LINE, False),
        ("~/a.png", LINE, False),
        ("C:\\a.png", LINE, False),
        ("..\\output\\a.png", LINE, False),
        ("mine/a.png [output]", COMBO, True),
        ("mine [output]", COMBO, False),
        ("mine/../other/a.png [output]", COMBO, False),
        ("a..b.png", COMBO, True),
        ("/", LINE, True),
        ("and/or", LINE, True),
        ("a cat, from [output]", TEXT, True),
        ("/imagine a cat\nand ../ a dog", TEXT, True),
        ("../a.png", None, True),
        ('{"a": "/../a.png"}', LINE, True),
        ('{"a": "/../a.png"}', COMBO, False),
    ],
)
def test_path_is_allowed_within_the_two_folders(
    text: str, declared: Any, *, is_allowed: bool
) -> None:
    refused = nullcontext() if is_allowed else pytest.raises(WorkflowRejected, match="node 7")

    with refused:
        check_files(one("Loader", name=text), LOADABLE, lambda _: declare(declared))


def declare(declared: Any, *, is_output: bool = False) -> dict[str, Any]:
    """What GET /object_info says of a class with this input `name`."""
    inputs = {"required": {"name": declared} if declared else {}}
    return {"input": inputs, "output_node": is_output}


def test_part_of_an_input_is_checked_as_the_input(others_file: str) -> None:
    with pytest.raises(WorkflowRejected, match=r"'name\.file0'"):
        check_files(
            {"7": node("Loader", **{"name.file0": f"../output/{others_file}"})},
            LOADABLE,
            lambda _: declare(["COMFY_AUTOGROW_V3", {"template": {}}]),
        )


def test_node_of_a_class_that_comfyui_replaces_is_checked_as_its_new_class(
    others_file: str,
) -> None:
    # ComfyUI copies the title of a node that it replaces.
    def old_loader(name: str) -> Workflow:
        return {
            "1": {**node("TestOldLoader", file=name), "_meta": {"title": "old"}},
            "2": node("SaveImage", images=["1", 0], filename_prefix="replaced"),
        }

    picture = Path(run(image())["output"][0]["local_path"])
    given = worker_status().folders["input"] / "replaced.png"
    given.write_bytes(picture.read_bytes())

    if not ComfyUIVersion(worker_status().comfyui_version).replaces_nodes:
        message = run(old_loader(given.name))["message"]
        assert "'TestOldLoader' is not installed" in message
        return
    assert run(old_loader(given.name))["status"] == "completed"
    assert "LOAD_ANY_FILE=1" in refusal(old_loader(f"../output/{others_file}"))


def test_text_of_an_output_node_names_what_it_writes() -> None:
    workflow = one("Writer", name="/mnt/results/a.png")

    check_files(workflow, LOADABLE, lambda _: declare(LINE, is_output=True))


def test_classes_are_asked_about_only_where_a_string_may_be_a_path() -> None:
    asked: list[str] = []

    def node_info(class_type: str) -> dict[str, Any]:
        asked.append(class_type)
        return {}

    workflow = image() | one("Text", text="../x") | {"8": node("Load", a=["7", 0])}
    check_files(workflow, LOADABLE, node_info)

    assert asked == ["Text"]


def test_only_input_files_are_marked_as_used(tmp_path: Path) -> None:
    loadable = LoadableFiles(tmp_path / "input", tmp_path / "output" / "mine")
    given, outside = tmp_path / "input" / "given.png", tmp_path / "outside.png"
    loadable.input_folder.mkdir()
    for path in (given, outside):
        path.touch()
        os.utime(path, (1, 1))

    mark_as_used(
        {"1": node("Load", a="given.png [input]", b="../outside.png", c="absent", d="\0")}, loadable
    )

    assert wait_until(lambda: given.stat().st_atime > 1)
    assert (given.stat().st_mtime, outside.stat().st_atime) == (1, 1)
