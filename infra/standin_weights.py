"""Writes stand-in weights: random numbers with the file names and the layout of the real files.

Runs in ComfyUI's Python (runtime/commands/standins.py runs it). ComfyUI reads a model's size from
its tensors, so its own loaders accept these files. The sizes are the smallest that they accept,
because a CPU has to compute with them.
"""

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

METADATA = {"lambda_comfyui": "stand-in weights, random numbers or zeros, not a model"}
TEXT_WIDTH = 4096
FEED_FORWARD_WIDTH = 10240
TEXT_BLOCKS = 24
LORA_RANK = 4
# The vocabulary of the tokenizer: words of a video prompt.
WORDS = (
    "a the of in on at and with slow fast wide close shot camera moving over light soft dawn night "
    "blurry low quality static watermark text deformed sharp high detail water sky cliff city"
)

Tensors = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, required=True, metavar="DIR")
    parser.add_argument("--into", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()
    sys.path.insert(0, str(args.comfyui))

    import comfy.cli_args  # noqa: PLC0415 - only importable now

    comfy.cli_args.args.cpu = True
    for seed, noise in enumerate(("high", "low")):
        model = diffusion_model(seed)
        write(
            args.into / f"diffusion_models/wan2.2_t2v_{noise}_noise_14B_fp8_scaled.safetensors",
            model,
        )
        write(
            args.into / f"loras/wan2.2_t2v_lightx2v_4steps_lora_v1.1_{noise}_noise.safetensors",
            lora(model, seed),
        )
    write(args.into / "vae/wan_2.1_vae.safetensors", vae())
    write(args.into / "text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors", text_encoder())
    write_zeros(
        args.into / "checkpoints/v1-5-pruned-emaonly-fp16.safetensors", stable_diffusion_15()
    )


def diffusion_model(seed: int) -> Tensors:
    """One block of width 128: ComfyUI divides the width by 128 to get the number of heads."""
    import comfy.ops  # noqa: PLC0415
    from comfy.ldm.wan.model import WanModel  # noqa: PLC0415

    model = WanModel(
        model_type="t2v",
        dim=128,
        ffn_dim=128,
        num_heads=1,
        num_layers=1,
        in_dim=16,
        out_dim=16,
        freq_dim=256,
        text_dim=TEXT_WIDTH,
        text_len=512,
        patch_size=(1, 2, 2),
        operations=comfy.ops.disable_weight_init,
    )
    return randomised(model.state_dict(), seed, spread=0.1)


def lora(model: Tensors, seed: int) -> Tensors:
    """Low-rank changes to the attention of that model, small enough to leave it finite."""
    import torch  # noqa: PLC0415

    generator = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}
    for key, weight in model.items():
        if "_attn." in key and weight.ndim == 2:
            name = "diffusion_model." + key.removesuffix(".weight")
            rows, columns = weight.shape
            down = torch.randn(LORA_RANK, columns, generator=generator) * 0.02
            up = torch.randn(rows, LORA_RANK, generator=generator) * 0.02
            tensors[f"{name}.lora_down.weight"] = down.half()
            tensors[f"{name}.lora_up.weight"] = up.half()
            tensors[f"{name}.alpha"] = torch.tensor(float(LORA_RANK)).half()
    return tensors


def vae() -> Tensors:
    """The thinnest Wan 2.1 VAE: its width is the size of `decoder.head.0.gamma`."""
    from comfy.ldm.wan.vae import WanVAE  # noqa: PLC0415

    model = WanVAE(
        dim=1,
        z_dim=16,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=2,
        attn_scales=[],
        temperal_downsample=[False, True, True],
        dropout=0.0,
    )
    return randomised(model.state_dict(), seed=5, spread=0.15)


def text_encoder() -> Tensors:
    """The tensors by which ComfyUI recognises UMT5-XXL, the tokenizer, and every small tensor.

    The large tensors are left out: ComfyUI accepts that, and untouched memory is zero and costs
    nothing. A small tensor left out would contain what the heap held before.
    The type of the last norm becomes the type of all weights. A CPU computes in 32 bits and would
    convert another type for each prompt (35 s instead of 28 s); a GPU would need twice the bytes.
    """
    import torch  # noqa: PLC0415

    dtype = torch.float16 if torch.cuda.is_available() else torch.float32
    generator = torch.Generator().manual_seed(7)
    tensors: Tensors = {
        "encoder.block.23.layer.1.DenseReluDense.wi_1.weight": torch.zeros(
            FEED_FORWARD_WIDTH, TEXT_WIDTH, dtype=torch.float8_e4m3fn
        ),
        "encoder.final_layer_norm.weight": torch.ones(TEXT_WIDTH, dtype=dtype),
        "spiece_model": torch.frombuffer(bytearray(tokenizer()), dtype=torch.uint8),
    }
    for block in range(TEXT_BLOCKS):
        name = f"encoder.block.{block}.layer"
        bias = torch.randn(32, 64, generator=generator).half()
        tensors[f"{name}.0.SelfAttention.relative_attention_bias.weight"] = bias
        for layer in (0, 1):
            tensors[f"{name}.{layer}.layer_norm.weight"] = torch.ones(TEXT_WIDTH).half()
    return tensors


def tokenizer() -> bytes:
    """Train a SentencePiece model with UMT5's special tokens on the few words above."""
    import sentencepiece  # noqa: PLC0415

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([WORDS] * 10 + WORDS.split()),
        model_writer=model,
        vocab_size=128,
        hard_vocab_limit=False,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


def stable_diffusion_15() -> Tensors:
    """The tensors of a whole checkpoint without memory: ComfyUI knows this model by its sizes."""
    import comfy.ops  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from comfy.ldm.models.autoencoder import AutoencoderKL  # noqa: PLC0415
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: PLC0415
    from comfy.sd1_clip import SDClipModel  # noqa: PLC0415

    shape = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3}
    layers = {"ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": []}
    with torch.device("meta"):
        unet = UNetModel(
            image_size=32,
            in_channels=4,
            out_channels=4,
            model_channels=320,
            num_res_blocks=[2, 2, 2, 2],
            channel_mult=(1, 2, 4, 4),
            num_heads=8,
            use_spatial_transformer=True,
            transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
            transformer_depth_output=[1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
            transformer_depth_middle=1,
            context_dim=768,
            legacy=False,
            operations=comfy.ops.disable_weight_init,
        )
        vae = AutoencoderKL(ddconfig=shape | layers | {"dropout": 0.0}, embed_dim=4)
        text = SDClipModel(device="meta", dtype=torch.float16)
    return (
        {f"model.diffusion_model.{key}": value for key, value in unet.state_dict().items()}
        | {f"first_stage_model.{key}": value for key, value in vae.state_dict().items()}
        | {
            f"cond_stage_model.{key}": value
            for key, value in text.state_dict().items()
            if key.startswith("transformer.text_model")
        }
    )


def randomised(state: Tensors, seed: int, *, spread: float) -> Tensors:
    """Matrices and kernels of normal noise, norms of one, biases of zero: finite all the way."""
    import torch  # noqa: PLC0415

    generator = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}
    for key, value in state.items():
        if "gamma" in key or ("norm" in key and key.endswith("weight")):
            tensors[key] = torch.ones(value.shape)
        elif value.ndim > 1:
            tensors[key] = torch.randn(value.shape, generator=generator) * spread
        else:
            tensors[key] = torch.zeros(value.shape)
    return {key: value.half().contiguous() for key, value in tensors.items()}


def write(path: Path, tensors: Tensors) -> None:
    from safetensors.torch import save  # noqa: PLC0415

    path.parent.mkdir(parents=True, exist_ok=True)
    # Not save_file: it makes the file readable for its owner alone.
    path.write_bytes(save(tensors, METADATA))


def write_zeros(path: Path, tensors: Tensors) -> None:
    """A file of these names and shapes, all zero, in 16 bits, that takes no space on the disk.

    https://huggingface.co/docs/safetensors: the length of the header, the header, the data.
    """
    header: dict[str, Any] = {"__metadata__": METADATA}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * 2
        header[name] = {
            "dtype": "F16",
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


if __name__ == "__main__":
    main()
