"""Which results ComfyUI keeps from one prompt to the next: decided here alone.

What COMFYUI_ARGS says wins. Without it, ComfyUI has its own default; where that is the classic
cache, the models of earlier prompts stay, too (runtime/worker/inside_models.py).
docs/decisions/0019-models-of-earlier-prompts.md says why.
"""

from enum import Enum, auto

from handler.settings import Settings
from runtime.process.memory import total_bytes
from runtime.worker.comfyui_features import ComfyUIFeatures
from runtime.worker.inside_models import HEADROOM_VARIABLE

# Options of ComfyUI's main.py.
_OF_MANY_PROMPTS = ("--cache-lru", "--cache-ram")
_OF_ONE_PROMPT = ("--cache-classic", "--cache-none", "--high-ram")
# As newer versions of ComfyUI have it: prompt_worker in main.py.
_HEADROOM_SHARE = 0.1
_MIN_HEADROOM_BYTES, _MAX_HEADROOM_BYTES = 2 << 30, 10 << 30


class NodeCache(Enum):
    """What stays in memory when another prompt begins."""

    ONE_PROMPT = auto()
    """What the new prompt needs."""
    MODELS = auto()
    """The same, and the models of earlier prompts."""
    MANY_PROMPTS = auto()
    """Results of earlier prompts, which may name files."""


# By ComfyUI's CacheType, '' where no ComfyUI is installed.
_BY_DEFAULT = {
    "CLASSIC": NodeCache.MODELS,
    "NONE": NodeCache.ONE_PROMPT,
    "": NodeCache.ONE_PROMPT,
}


def node_cache(settings: Settings) -> NodeCache:
    """The one that a ComfyUI has which is started now."""
    given = settings.comfyui_args
    if any(word.startswith(_OF_MANY_PROMPTS) for word in given):
        return NodeCache.MANY_PROMPTS
    if any(word in _OF_ONE_PROMPT for word in given):
        return NodeCache.ONE_PROMPT
    default = ComfyUIFeatures.of(settings.comfyui_code).cache_type
    return _BY_DEFAULT.get(default, NodeCache.MANY_PROMPTS)


def cache_environment(settings: Settings) -> dict[str, str]:
    """What ComfyUI's launcher gets in its environment: whether models stay, and how many."""
    if node_cache(settings) is not NodeCache.MODELS:
        return {}
    try:
        memory_bytes = total_bytes()
    except (OSError, ValueError, StopIteration):
        # Nobody knows when memory would be short.
        return {}
    headroom_bytes = int(memory_bytes * _HEADROOM_SHARE)
    headroom_bytes = min(max(headroom_bytes, _MIN_HEADROOM_BYTES), _MAX_HEADROOM_BYTES)
    return {HEADROOM_VARIABLE: str(headroom_bytes)}
