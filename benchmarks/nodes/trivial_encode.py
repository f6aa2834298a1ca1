"""A node of the benchmark weights.py: it takes a text encoder, and encodes in no time."""

from typing import Any

import torch


class TrivialTextEncode:
    """Zeros in the shape of an encoded prompt of Wan."""

    CATEGORY = "benchmarks"
    FUNCTION = "encode"
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"clip": ("CLIP",), "text": ("STRING", {"default": ""})}}

    def encode(self, clip: Any, text: str) -> tuple[list[Any]]:
        return ([[torch.zeros(1, 8, 4096), {}]],)


NODE_CLASS_MAPPINGS = {"TrivialTextEncode": TrivialTextEncode}
