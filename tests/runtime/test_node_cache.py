"""Which node cache ComfyUI has: its own default, what COMFYUI_ARGS says, and models beside it."""

from pathlib import Path

import pytest

from handler.settings import Settings
from runtime.worker import node_cache
from runtime.worker.inside_models import HEADROOM_VARIABLE
from runtime.worker.node_cache import NodeCache, cache_environment

GB = 1 << 30
CLASSIC, RAM = "CacheType.CLASSIC", "CacheType.RAM_PRESSURE"


def settings_of(folder: Path, default: str, arguments: str = "") -> Settings:
    """Those of a ComfyUI whose main.py has this default."""
    (folder / "main.py").write_text(f"    cache_type = execution.{default}\n" if default else "")
    places = dict.fromkeys(("COMFYUI_HOME", "COMFYUI_DIR", "WORKER_DIR"), str(folder))
    return Settings.from_env({**places, "COMFYUI_ARGS": f"--cpu {arguments}"})


@pytest.mark.parametrize(
    ("default", "arguments", "expected"),
    [
        (CLASSIC, "", NodeCache.MODELS),
        (RAM, "", NodeCache.MANY_PROMPTS),
        ("CacheType.OF_THE_FUTURE", "", NodeCache.MANY_PROMPTS),
        ("CacheType.NONE", "", NodeCache.ONE_PROMPT),
        (CLASSIC, "--cache-classic", NodeCache.ONE_PROMPT),
        (RAM, "--cache-classic", NodeCache.ONE_PROMPT),
        (CLASSIC, "--cache-none", NodeCache.ONE_PROMPT),
        (RAM, "--high-ram", NodeCache.ONE_PROMPT),
        (CLASSIC, "--cache-ram", NodeCache.MANY_PROMPTS),
        (CLASSIC, "--cache-ram=8", NodeCache.MANY_PROMPTS),
        (CLASSIC, "--cache-lru 20", NodeCache.MANY_PROMPTS),
        ("", "", NodeCache.ONE_PROMPT),
    ],
)
def test_cache_is_the_users_else_the_default_of_comfyui_with_models_beside_a_classic_one(
    default: str, arguments: str, expected: NodeCache, tmp_path: Path
) -> None:
    settings = settings_of(tmp_path, default, arguments)

    assert node_cache.node_cache(settings) is expected
    assert bool(cache_environment(settings)) is (expected is NodeCache.MODELS)


@pytest.mark.parametrize(
    ("memory_bytes", "headroom_bytes"),
    [(8 * GB, 2 * GB), (64 * GB, 64 * GB // 10), (512 * GB, 10 * GB)],
)
def test_a_tenth_of_the_memory_stays_available(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory_bytes: int, headroom_bytes: int
) -> None:
    monkeypatch.setattr(node_cache, "total_bytes", lambda: memory_bytes)

    given = cache_environment(settings_of(tmp_path, CLASSIC))

    assert given == {HEADROOM_VARIABLE: str(headroom_bytes)}


def test_no_models_are_kept_where_the_memory_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown() -> int:
        raise FileNotFoundError("/proc/meminfo")

    monkeypatch.setattr(node_cache, "total_bytes", unknown)

    assert cache_environment(settings_of(tmp_path, CLASSIC)) == {}
