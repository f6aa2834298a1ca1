"""The order of need, compared with that of ComfyUI's own code."""

import json
import os
import random
import subprocess
from pathlib import Path

import pytest

from handler.load_order import models_in_order, nodes_in_order
from handler.settings import Settings
from tests.workflows import Workflow, image, node, small_wan_sample, wan

ASK_COMFYUI = Path(__file__).with_name("comfyui_order.py")
OUTPUT, OTHER = "PreviewAny", "EmptyImage"


def test_wan_needs_vae_text_encoder_high_noise_low_noise() -> None:
    assert models_in_order(wan()) == [
        "wan_2.1_vae.safetensors",
        "umt5_xxl_fp8_e4m3fn_scaled.safetensors",
        "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors",
        "wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors",
    ]


def test_cached_nodes_and_what_only_they_read_load_nothing() -> None:
    # The encoded prompts; the text encoder's loader is not among the cached ones.
    names = models_in_order(wan(), cached=["91", "99"])

    assert names[0] == "wan_2.1_vae.safetensors"
    assert "umt5_xxl_fp8_e4m3fn_scaled.safetensors" not in names


def test_nodes_that_no_output_needs_load_nothing() -> None:
    workflow = {
        "1": node("VAELoader", vae_name="unused.safetensors"),
        "2": node("PreviewAny", source="x"),
    }

    assert nodes_in_order(workflow, is_output=lambda name: name == OUTPUT) == ["2"]


@pytest.mark.parametrize(
    "inputs",
    [{"source": ["404", 0]}, {"source": ["2", 0]}],
    ids=["link to no node", "cycle"],
)
def test_graph_that_comfyui_refuses_has_an_order_of_what_is_left(inputs: Workflow) -> None:
    workflow = {
        "1": node("VAELoader", vae_name="a.safetensors"),
        "2": node(OUTPUT, **inputs),
        "3": node(OUTPUT, source=["1", 0]),
    }

    assert models_in_order(workflow) == ["a.safetensors"]


@pytest.mark.comfyui
@pytest.mark.slow
def test_order_is_that_of_comfyui_itself() -> None:
    samples = [wan(), small_wan_sample(), image()]
    graphs = [random_graph(seed) for seed in range(300)]

    orders = comfyuis_orders(samples + graphs)

    # The ends of these graphs are outputs: no class has to be asked for.
    assert [nodes_in_order(workflow) for workflow in samples] == orders[: len(samples)]
    found = [nodes_in_order(graph, is_output=lambda name: name == OUTPUT) for graph in graphs]
    assert found == orders[len(samples) :]


def random_graph(seed: int) -> Workflow:
    """Up to 20 nodes of two classes; each may read nodes of smaller numbers. Order is random."""
    dice = random.Random(seed)
    numbers = list(range(dice.randint(1, 20)))
    graph = {}
    for number in numbers:
        sources = dice.sample(numbers[:number], k=min(number, dice.randint(0, 3)))
        inputs = {f"input_{place}": [str(source), 0] for place, source in enumerate(sources)}
        graph[str(number)] = node(dice.choice([OUTPUT, OTHER, OTHER]), **inputs)
    shuffled = list(graph)
    dice.shuffle(shuffled)
    return {key: graph[key] for key in shuffled}


def comfyuis_orders(workflows: list[Workflow]) -> list[list[str]]:
    settings = Settings.from_env(os.environ)
    process = subprocess.run(
        [settings.comfyui_interpreter, ASK_COMFYUI],
        cwd=settings.comfyui_code,
        input=json.dumps(workflows),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    orders: list[list[str]] = json.loads(process.stdout)
    return orders
