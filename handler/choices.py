"""Explains a value that is not among the choices of a node's input, such as a missing model.

How the choices are asked for is decided in comfyui.py. An input's declaration is a list: its type,
which may be the list of choices itself, and its options, which may hold them
(https://docs.comfy.org/custom-nodes/backend/datatypes#combo).
"""

from typing import Any

from handler.workflow import shown

MAX_CHOICES = 20
MAX_SIMILAR = 3
_SIMILARITY = 0.6
# Folders below `models`, by the names that loaders give their inputs: nodes.py and comfy_extras of
# ComfyUI. Node packs use the same names.
_FOLDERS_BY_INPUT = {
    "ckpt_name": "checkpoints",
    "vae_name": "vae",
    "lora_name": "loras",
    "unet_name": "diffusion_models",
    "clip_name": "text_encoders",
    "clip_name1": "text_encoders",
    "clip_name2": "text_encoders",
    "clip_name3": "text_encoders",
    "clip_name4": "text_encoders",
    "control_net_name": "controlnet",
    "style_model_name": "style_models",
    "gligen_name": "gligen",
    "hypernetwork_name": "hypernetworks",
    "photomaker_model_name": "photomaker",
    "audio_encoder_name": "audio_encoders",
    "model_name": "upscale_models",
}
_FOLDERS_BY_CLASS = {
    "CLIPVisionLoader": "clip_vision",
    "LatentUpscaleModelLoader": "latent_upscale_models",
    "ModelPatchLoader": "model_patches",
}
_UPLOADS = ("image_upload", "video_upload", "audio_upload", "file_upload")


def explain_unavailable(value: Any, class_type: str, input_name: str, declaration: Any) -> str:
    """Why `value` is refused, what is similar, where its file belongs, and what is available.

    `declaration` is that of the input, None if ComfyUI did not give it.
    """
    choices = _choices(declaration)
    parts = [f"{shown(value)} is not available"]
    if similar := _similar(value, choices or []):
        parts.append(f"similar: {', '.join(similar)}")
    if any(_options(declaration).get(flag) for flag in _UPLOADS):
        parts.append("put the file into ComfyUI's input folder")
    elif folder := model_folder(class_type, input_name):
        parts.append(
            f"put the file into models/{folder} of ComfyUI, or {folder} of MODELS_DIR, under this"
            " name, or list it in a manifest of MODEL_MANIFESTS"
        )
    parts.append(_available(choices, class_type))
    return "; ".join(parts)


def model_folder(class_type: str, input_name: str) -> str | None:
    """The folder below `models` from which a node of this class loads what this input names.

    None where that is not known.
    """
    return _FOLDERS_BY_CLASS.get(class_type) or _FOLDERS_BY_INPUT.get(input_name)


def _choices(declaration: Any) -> list[str] | None:
    if not isinstance(declaration, list) or not declaration:
        return None
    if isinstance(declaration[0], list):
        return [str(choice) for choice in declaration[0]]
    choices = _options(declaration).get("options")
    return [str(choice) for choice in choices] if isinstance(choices, list) else None


def _options(declaration: Any) -> dict[str, Any]:
    if isinstance(declaration, list) and len(declaration) > 1 and isinstance(declaration[1], dict):
        return declaration[1]
    return {}


def _similar(value: Any, choices: list[str]) -> list[str]:
    """The closest choices first. Neither the folder nor the case of a name counts."""
    # Not at the top: only a refused workflow needs it.
    import difflib  # noqa: PLC0415

    by_name: dict[str, list[str]] = {}
    for choice in choices:
        by_name.setdefault(_name(choice), []).append(choice)
    names = difflib.get_close_matches(_name(str(value)), by_name, MAX_SIMILAR, _SIMILARITY)
    return [choice for name in names for choice in by_name[name]][:MAX_SIMILAR]


def _name(path: str) -> str:
    return path.replace("\\", "/").rpartition("/")[2].lower()


def _available(choices: list[str] | None, class_type: str) -> str:
    if choices is None:
        return f"ComfyUI lists what is available at /object_info/{class_type}"
    if not choices:
        return "nothing is installed for this input"
    others = len(choices) - MAX_CHOICES
    listed = ", ".join(choices[:MAX_CHOICES])
    return f"available: {listed}" + (f", and {others} more" if others > 0 else "")
