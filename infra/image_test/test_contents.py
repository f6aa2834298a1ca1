"""What is in the images, and what is not."""

import json
import re

import pytest

from infra.image_test.containers import HOST, LAMBDA, podman

IMAGES = pytest.mark.parametrize("image", [LAMBDA, HOST], ids=["lambda", "host"])
LIMIT_GB = 6.8
RELEASE_LIMIT_MB = 50
TOOLS = ("pip", "pip3", "gcc", "cc", "g++", "make", "git", "curl", "wget")
# The mounts of the container, and the places that everybody may write by design.
PRUNED = r"-path /proc -o -path /sys -o -path /dev -o -path /tmp -o -path /var/tmp -o -path /run"
BUILD_LEFTOVERS = r"-path '*/site-packages/pip' -o -name .cache -o -name '*.whl' -o -name .git"
BYTECODE = (
    "/var/task/handler/__pycache__/app.cpython-313.pyc",
    "/opt/comfyui/ComfyUI/__pycache__/nodes.cpython-313.pyc",
    "/opt/comfyui/venv/lib/python3.13/site-packages/torch/__pycache__/__init__.cpython-313.pyc",
    "/opt/handler/lib/python3.13/site-packages/awslambdaric/__pycache__/bootstrap.cpython-313.pyc",
)


def shell(image: str, script: str) -> str:
    """The output of a script that root runs in the image, with nothing mounted."""
    return podman(
        *("run", "--rm", "--network", "none", "--user", "0", "--entrypoint", "sh"),
        *(image, "-c", script),
    )


def instruction(layer: dict[str, str]) -> str:
    """The instruction of a layer, without podman's words and hashes."""
    return re.sub(r"^/bin/sh -c |#\(nop\) |(dir|file):\w+ in |\s+(?=\s)", "", layer["CreatedBy"])


@IMAGES
def test_size_by_layer(image: str) -> None:
    (details,) = json.loads(podman("image", "inspect", image))
    layers = json.loads(podman("history", "--format", "json", image))
    total_gb = details["Size"] / 1e9
    print(f"\n{total_gb:.2f} GB")
    for layer in layers:
        if layer["size"]:
            print(f"{layer['size'] / 1e6:9.1f} MB  {instruction(layer).rstrip()[:70]}")

    assert total_gb <= LIMIT_GB
    (code, *_) = (layer for layer in layers if layer["size"])
    assert "/var/task" in code["CreatedBy"]
    assert code["size"] / 1e6 <= RELEASE_LIMIT_MB


@IMAGES
def test_no_tool_of_the_build_is_left(image: str) -> None:
    found = shell(
        image,
        f"for tool in {' '.join(TOOLS)}; do command -v $tool; done;"
        f" find / -xdev \\( {PRUNED} \\) -prune -o \\( {BUILD_LEFTOVERS} \\) -print",
    )

    assert found.split() == []


@IMAGES
def test_nothing_is_world_writable(image: str) -> None:
    found = shell(
        image,
        f"find / -xdev \\( {PRUNED} \\) -prune -o \\( -type f -o -type d \\) -perm -o+w -print",
    )

    assert found.split() == []


@IMAGES
def test_bytecode_is_there(image: str) -> None:
    missing = shell(image, f"for file in {' '.join(BYTECODE)}; do [ -e $file ] || echo $file; done")

    assert missing.split() == []


@IMAGES
def test_pytorch_finds_its_libraries_and_no_triton(image: str) -> None:
    """docs/decisions/0016-no-triton-in-the-image.md: it would look for a C compiler."""
    script = (
        "import importlib.util, torch, torchaudio, torchvision;"
        " print(torch.version.cuda is not None, importlib.util.find_spec('triton'))"
    )

    assert shell(image, f'/opt/comfyui/venv/bin/python -c "{script}"').split() == ["True", "None"]


@IMAGES
def test_every_file_can_be_read_by_any_user(image: str) -> None:
    """Lambda chooses the user."""
    found = shell(image, "find /opt /var/task ! -type l ! -perm -o+r -print")

    assert found.split() == []
