"""Keeps models beyond their prompt, inside ComfyUI's process.

ComfyUI's classic node cache forgets every result that the next prompt does not need. Here, the
models among them stay in memory until a prompt needs them again, or until memory is short. Nothing
else stays: no image, and no result that names a file.

A prompt has as much memory as it has with the classic cache. A model that is kept takes none of the
GPU's. Of the machine's, room is made before a node runs and before a model file is read, and, as
other processes need memory, too, several times a second.

runtime/worker/inside_comfyui.py loads this file. ComfyUI's Python runs it, so it imports nothing of
this project. Whether it is used is decided in runtime/worker/node_cache.py;
docs/decisions/0019-models-of-earlier-prompts.md says why.
"""

import contextlib
import ctypes
import gc
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

# The environment variable with the bytes of memory that stay available. Without it, none is kept.
HEADROOM_VARIABLE = "LAMBDA_COMFYUI_MODELS_HEADROOM"
# Of the size of a model file, what its load takes at most: the content of the file, and the model.
_LOAD_FACTOR = 2
# Where ComfyUI's classes for text encoders, VAEs and control nets have their model.
_PATCHER_NAMES = ("patcher", "control_model_wrapped")
# What a clone of a model gets from nodes that change it. It may hold memory of the GPU, and the
# patches of a LoRA its mapped file, which then cannot leave a small disk.
_EXTRAS = (
    "patches",
    "attachments",
    "additional_models",
    "injections",
    "hook_patches",
    "forced_hooks",
)
_EXTRAS_BY_KIND = ("wrappers", "callbacks")

# How often memory is looked at while something is kept. Another ComfyUI loads a gigabyte meanwhile.
_LOOK_EVERY_S = 0.2

Entries = dict[Any, Any]


class KeptModels:
    """Entries of ComfyUI's node cache, those of each earlier prompt together, the oldest first.

    `headroom_bytes` of memory stay available, as `available_bytes` counts it. Its methods are for
    the executor's thread and for loaders, `watch` is for a thread of its own.
    """

    def __init__(self, headroom_bytes: int, available_bytes: Callable[[], int]) -> None:
        self._headroom_bytes, self._available_bytes = headroom_bytes, available_bytes
        self._prompts: list[Entries] = []
        self._changed = threading.Condition(threading.RLock())

    def add(self, entries: Entries) -> None:
        """Keep what the last prompt used and the next one does not."""
        if entries:
            with self._changed:
                self._prompts.append(entries)
                self._changed.notify_all()

    def take(self, keys: Iterable[Any]) -> Entries:
        """The entries with these keys, which are kept no longer."""
        with self._changed:
            found = {
                key: entries.pop(key) for key in keys for entries in self._prompts if key in entries
            }
            self._prompts = [entries for entries in self._prompts if entries]
            return found

    def clear(self) -> None:
        with self._changed:
            self._prompts.clear()

    def make_room(self, needed_bytes: int = 0) -> None:
        """Forget the oldest, until `needed_bytes` and the headroom are available."""
        with self._changed:
            while self._prompts and not self.has_room(needed_bytes):
                self._forget(self._prompts[0])

    def watch(self) -> None:
        """Forget the oldest whenever the headroom is not available; does not return."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._prompts)
            time.sleep(_LOOK_EVERY_S)
            self.forget_if_short()

    def forget_if_short(self) -> None:
        """Forget the oldest, unless ComfyUI's list of loaded models has one of its models.

        Only the executor's thread may change that list, which the end of such a model does.
        """
        with self._changed:
            if self._prompts and not self.has_room(0):
                loaded = _loaded_patchers()
                unloaded = (each for each in self._prompts if not _has_any(each, loaded))
                if (oldest := next(unloaded, None)) is not None:
                    self._forget(oldest)

    def _forget(self, entries: Entries) -> None:
        self._prompts = [each for each in self._prompts if each is not entries]
        entries.clear()
        _return_freed_memory()
        logging.info("forgot the models of an earlier prompt, because memory is short")

    def make_room_to_load(self, path: str) -> None:
        """Make room for the model in this file. Raises nothing."""
        with contextlib.suppress(OSError):
            self.make_room(_LOAD_FACTOR * os.stat(path).st_size)

    def has_room(self, needed_bytes: int) -> bool:
        """Whether `needed_bytes` and the headroom are available; False where nobody knows."""
        try:
            return self._available_bytes() >= needed_bytes + self._headroom_bytes
        except (OSError, ValueError, StopIteration):
            return False

    def extend(self, execution: Any, nodes: Any) -> None:
        """Extend ComfyUI's modules execution.py and nodes.py, before the executor makes its cache.

        Raises AttributeError where they are others than those that are known.
        """
        plain_init = execution.CacheSet.init_classic_cache
        plain_before = nodes.before_node_execution

        def init_classic_cache(cache_set: Any, *arguments: Any) -> None:
            plain_init(cache_set, *arguments)
            # A new cache replaces one that was dropped to free memory.
            self.clear()
            _extend_cache(cache_set.outputs, self)

        def before_node_execution(*arguments: Any) -> None:
            plain_before(*arguments)
            self.make_room()

        execution.CacheSet.init_classic_cache = init_classic_cache
        nodes.before_node_execution = before_node_execution


def of_environment(available_bytes: Callable[[], int]) -> KeptModels | None:
    """None if the worker wants ComfyUI's node cache as it is."""
    headroom_bytes = os.environ.get(HEADROOM_VARIABLE)
    return KeptModels(int(headroom_bytes), available_bytes) if headroom_bytes else None


def _extend_cache(cache: Any, kept: KeptModels) -> None:
    """Keep the models that this cache forgets. ComfyUI calls `clean_unused` as a prompt begins."""
    plain = cache.clean_unused

    def clean_unused() -> None:
        forgotten: Entries = {}
        try:
            wanted = set(cache.cache_key_set.get_used_keys())
            cache.cache |= kept.take(wanted)
            forgotten = {
                key: entry
                for key, entry in cache.cache.items()
                if key not in wanted and _is_of_models(entry) and _can_recur(key)
            }
            plain()
            kept.add(_off_the_gpu(forgotten, cache.cache, kept))
        except Exception:
            # The classic cache, then.
            logging.exception("cannot keep the models of earlier prompts")
            kept.clear()
            plain()

    cache.clean_unused = clean_unused


def _off_the_gpu(forgotten: Entries, used: Entries, kept: KeptModels) -> Entries:
    """Those of the forgotten entries that memory has room for, with their models there.

    A model that the prompt uses stays where it is. An entry whose model stays on the GPU for
    another reason is left out.
    """
    in_use = {id(model) for entry in used.values() for model in _models_of(entry)}
    entries: Entries = {}
    for key, entry in forgotten.items():
        models = [model for model in _models_of(entry) if id(model) not in in_use]
        needed_bytes = sum(map(_bytes_on_the_gpu, models))
        kept.make_room(needed_bytes)
        if not kept.has_room(needed_bytes):
            continue
        _unload(models)
        if not any(map(_bytes_on_the_gpu, models)):
            entries[key] = entry
    return entries


def _unload(models: list[Any]) -> None:
    """Have ComfyUI move these models from the GPU to memory, and count them as loaded no longer."""
    management = sys.modules["comfy.model_management"]
    loaded = management.current_loaded_models
    count = len(loaded)
    for position in reversed(range(count)):
        patcher = loaded[position].model
        if patcher is not None and any(patcher.model is model for model in models):
            loaded[position].model_unload()
            del loaded[position]
    if len(loaded) < count:
        management.soft_empty_cache()


def _loaded_patchers() -> set[int]:
    management = sys.modules["comfy.model_management"]
    patchers = [loaded.model for loaded in list(management.current_loaded_models)]
    return {id(patcher) for patcher in patchers if patcher is not None}


def _has_any(entries: Entries, patchers: set[int]) -> bool:
    outputs = (output for entry in entries.values() for output in _flat(entry.outputs))
    return any(id(_patcher_of(output)) in patchers for output in outputs)


def _bytes_on_the_gpu(model: Any) -> int:
    tensors = (*model.parameters(), *model.buffers())
    return sum(tensor.nbytes for tensor in tensors if tensor.device.type != "cpu")


def _is_of_models(entry: Any) -> bool:
    """Whether a result consists of models as they were loaded."""
    if entry.ui:
        return False
    patchers = []
    for output in _flat(entry.outputs):
        if (patcher := _patcher_of(output)) is not None:
            patchers.append(patcher)
        elif not isinstance(output, str | int | float | None):
            return False
    return bool(patchers) and all(map(_is_as_loaded, patchers))


def _is_as_loaded(patcher: Any) -> bool:
    # The file of a dynamic model is mapped, and its GPU memory is not counted by ComfyUI's tensors.
    if getattr(patcher, "is_dynamic", bool)():
        return False
    by_kind = (getattr(patcher, name, {}).values() for name in _EXTRAS_BY_KIND)
    extras = [patcher.model_options.values(), *by_kind]
    extras.append(getattr(patcher, name, None) for name in _EXTRAS)
    return patcher.offload_device.type == "cpu" and not any(map(any, extras))


def _models_of(entry: Any) -> list[Any]:
    """The PyTorch modules of the models in a result."""
    patchers = filter(None, map(_patcher_of, _flat(entry.outputs)))
    return list({id(patcher.model): patcher.model for patcher in patchers}.values())


def _patcher_of(output: Any) -> Any | None:
    """ComfyUI's ModelPatcher of a model, a text encoder, a VAE or a control net; else None."""
    of_comfyui = sys.modules["comfy.model_patcher"].ModelPatcher
    candidates = (output, *(getattr(output, name, None) for name in _PATCHER_NAMES))
    return next((each for each in candidates if isinstance(each, of_comfyui)), None)


def _flat(outputs: Any) -> Iterator[Any]:
    if isinstance(outputs, Mapping):
        outputs = outputs.values()
    for output in outputs or ():
        if isinstance(output, list | tuple | Mapping):
            yield from _flat(output)
        else:
            yield output


def _can_recur(key: Any) -> bool:
    """Whether a later prompt can have this key: not one with NaN, by which a node says 'again'."""
    if isinstance(key, tuple | frozenset):
        return all(map(_can_recur, key))
    if isinstance(key, float):
        return not math.isnan(key)
    return isinstance(key, str | bytes | int | None)


def _return_freed_memory() -> None:
    """Collect the cycles of models, and have the C library give the freed memory back."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
