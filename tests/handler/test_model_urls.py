"""URLs of models in a workflow become names, where the operator allows their hosts."""

from typing import Any

import pytest

from events.errors import InvalidRequest
from handler.model_urls import take_model_urls
from handler.settings import Settings

ALLOWED = Settings(model_url_hosts=("huggingface.co", "Models.Internal"))
URL = "https://huggingface.co/o/r/resolve/main/a%20b.safetensors?token=s3cret"


def loading(value: Any, class_type: str = "VAELoader", name: str = "vae_name") -> dict[str, Any]:
    return {"4": {"class_type": class_type, "inputs": {name: value, "other": 1}}}


def test_url_becomes_a_name_of_its_own_in_the_folder_of_its_kind() -> None:
    given = loading(URL)

    workflow, (model,) = take_model_urls(given, ALLOWED)

    assert (model.url, model.folder) == (URL, "vae")
    assert model.name.startswith("from_url/")
    assert model.name.endswith("/a b.safetensors")
    assert workflow["4"]["inputs"] == {"vae_name": model.name, "other": 1}
    assert given == loading(URL)
    assert "s3cret" not in repr(model)


def test_two_urls_with_one_file_name_do_not_meet_and_one_url_is_fetched_once() -> None:
    one, other = "https://models.internal/1/a.gguf", "https://models.internal/2/a.gguf"
    workflow = {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": one}},
        "2": {"class_type": "UNETLoader", "inputs": {"unet_name": other}},
        "3": {"class_type": "UNETLoader", "inputs": {"unet_name": one}},
    }

    replaced, models = take_model_urls(workflow, ALLOWED)

    names = [node["inputs"]["unet_name"] for node in replaced.values()]
    assert names[0] == names[2] != names[1]
    assert [model.url for model in models] == [one, other]


@pytest.mark.parametrize(
    "workflow",
    [
        loading("a.safetensors"),
        loading(URL, "CLIPTextEncode", "text"),
        loading("https://huggingface.co/page"),
        loading(["3", 0]),
        loading("https://["),
    ],
)
def test_everything_else_stays_as_it_is(workflow: dict[str, Any]) -> None:
    assert take_model_urls(workflow, ALLOWED) == (workflow, ())


def test_without_allowed_hosts_nothing_is_taken() -> None:
    assert take_model_urls(loading(URL), Settings()) == (loading(URL), ())


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://evil.example/a.safetensors?s3cret", "which has not evil.example"),
        ("https://huggingface.co@evil.example/a.safetensors", "which has not evil.example"),
        ("https://huggingface.co/a.ckpt?s3cret", "a.ckpt can run code when it is loaded"),
        ("https://huggingface.co:port/a.gguf?s3cret", "is not valid"),
        ("https://huggingface.co/\ud800.gguf?s3cret", "is not valid"),
        ("https://huggingface.co/a%00b.gguf?s3cret", "without control characters"),
        (f"https://huggingface.co/{'a' * 200}.gguf?s3cret", "200 bytes at most"),
    ],
)
def test_urls_that_are_not_allowed_are_refused(url: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        take_model_urls(loading(url), ALLOWED)

    assert said in str(raised.value)
    assert "input.workflow_json.4.inputs.vae_name: " in str(raised.value)
    assert "s3cret" not in str(raised.value)
