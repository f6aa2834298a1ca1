"""Writes two Wan diffusion models of 2 GB each: noise in the layout that ComfyUI's loader accepts.

Runs in ComfyUI's interpreter: `large_models.py COMFYUI_DIR FOLDER`. The weights have 32 bits, so
that ComfyUI on a CPU only copies them and the benchmark measures the reading.
"""

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

BLOCK_BYTES = 64 * 1024 * 1024


def main() -> None:
    comfyui, folder = map(Path, sys.argv[1:])
    sys.path.insert(0, str(comfyui))
    import comfy.cli_args  # noqa: PLC0415 - importable only with the changed path

    comfy.cli_args.args.cpu = True
    shapes = wan_shapes(layers=8)
    for noise in ("high", "low"):
        write(folder / "diffusion_models" / f"large_{noise}.safetensors", shapes)


def wan_shapes(layers: int) -> dict[str, list[int]]:
    """The tensors of a Wan text-to-video model: with 8 layers, it has 0.5 billion parameters."""
    import comfy.ops  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from comfy.ldm.wan.model import WanModel  # noqa: PLC0415

    model = WanModel(
        model_type="t2v",
        dim=2048,
        ffn_dim=8192,
        num_heads=16,
        num_layers=layers,
        in_dim=16,
        out_dim=16,
        freq_dim=256,
        text_dim=4096,
        text_len=512,
        patch_size=(1, 2, 2),
        device=torch.device("meta"),
        operations=comfy.ops.disable_weight_init,
    )
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def write(path: Path, shapes: dict[str, list[int]]) -> None:
    """Write random tensors of these shapes. The format: https://huggingface.co/docs/safetensors/index#format"""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    described = json.dumps(header).encode()
    noise = os.urandom(BLOCK_BYTES)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(described).to_bytes(8, "little") + described)
        for start in range(0, end, BLOCK_BYTES):
            file.write(noise[: min(BLOCK_BYTES, end - start)])
        # Only data that is on the disk can be dropped from the page cache.
        os.fsync(file.fileno())


if __name__ == "__main__":
    main()
