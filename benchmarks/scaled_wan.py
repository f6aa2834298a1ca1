"""Writes the four models of Wan 2.2 at about a tenth of their real sizes, 3.6 GB together.

Runs in ComfyUI's interpreter: `scaled_wan.py COMFYUI_DIR STANDINS FOLDER`. The shares of the models
are the real ones: VAE 0.7 %, text encoder 19 %, each diffusion model 40 %. They are noise in
layouts that ComfyUI's loaders accept, so each byte that is loaded is read. Text encoder and VAE are
the stand-in weights with more tensors.

All have 32-bit numbers, which a CPU loads as they are. The real weights have 8-bit numbers, which a
GPU loads as they are; a CPU would make four bytes of each.
"""

import sys
from pathlib import Path

from large_models import wan_shapes, write  # type: ignore[import-not-found]

LAYERS = 5
TEXT_BLOCKS = 4
VAE_BYTES = 25_000_000
HIGH = "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors"
LOW = "wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors"
TEXT = "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
VAE = "wan_2.1_vae.safetensors"


def main() -> None:
    comfyui, standins, folder = map(Path, sys.argv[1:])
    sys.path.insert(0, str(comfyui))
    import comfy.cli_args  # noqa: PLC0415 - importable only with the changed path

    comfy.cli_args.args.cpu = True
    for name in (HIGH, LOW):
        write(folder / "diffusion_models" / name, wan_shapes(LAYERS))
    write_text_encoder(standins, folder)
    write_vae(standins, folder)


def write_text_encoder(standins: Path, folder: Path) -> None:
    """The stand-in with the largest tensor in more of its blocks."""
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    path = Path("text_encoders") / TEXT
    tensors = load_file(standins / path)
    name = next(name for name in tensors if name.endswith("wi_1.weight"))
    large = tensors[name] = tensors[name].float()
    for block in range(TEXT_BLOCKS - 1):
        tensors[f"encoder.block.{block}.layer.1.DenseReluDense.wi_1.weight"] = large.clone()
    (folder / path).parent.mkdir(parents=True)
    save_file(tensors, folder / path)


def write_vae(standins: Path, folder: Path) -> None:
    """The stand-in with a tensor that no VAE has; its loader leaves it out."""
    import torch  # noqa: PLC0415
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    path = Path("vae") / VAE
    tensors = load_file(standins / path)
    tensors["padding"] = torch.rand(VAE_BYTES // 4)
    (folder / path).parent.mkdir(parents=True)
    save_file(tensors, folder / path)


if __name__ == "__main__":
    main()
