"""The settings of handler, worker and commands, read from environment variables.

docs/configuration.md explains every variable; a test compares the two.
"""

import hashlib
import math
import os
import shlex
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from handler.outbound import Allowed

PROJECT = Path(__file__).resolve().parent.parent


class SettingsError(ValueError):
    """One or more environment variables have invalid values; the message lists all of them."""


def _number(
    kind: Callable[[str], float], accepts: Callable[[float], bool], expected: str
) -> Callable[[str], float]:
    """A parser of a variable that raises ValueError(`expected`) for every other value."""

    def parse(raw: str) -> float:
        try:
            value = kind(raw)
        except ValueError:
            raise ValueError(expected) from None
        if not accepts(value):
            raise ValueError(expected)
        return value

    return parse


_seconds = _number(
    float, lambda value: 0 <= value < math.inf, "expected a number of seconds, 0 or more"
)
_positive_seconds = _number(
    float, lambda value: 0 < value < math.inf, "expected a number of seconds, more than 0"
)
_amount = _number(float, lambda value: 0 <= value < math.inf, "expected a number, 0 or more")
_share = _number(float, lambda value: 0 < value <= 1, "expected a number, more than 0, at most 1")
_multiple = _number(float, lambda value: 1 <= value < math.inf, "expected a number, 1 or more")
_count = _number(int, lambda value: value >= 0, "expected a whole number, 0 or more")
_positive = _number(int, lambda value: value >= 1, "expected a whole number, 1 or more")
_batch_size = _number(int, lambda value: 1 <= value <= 10, "expected a number of messages, 1 to 10")
_port = _number(int, lambda value: 0 <= value <= 65535, "expected a port number, 0 to 65535")


def _switch(raw: str) -> bool:
    if raw not in ("0", "1"):
        raise ValueError("expected 0 or 1")
    return raw == "1"


def _balance(raw: str) -> str:
    if raw not in ("proportional", "fastest"):
        raise ValueError("expected proportional or fastest")
    return raw


def _url(raw: str) -> str:
    if not raw.startswith(("http://", "https://")):
        raise ValueError("expected an address that begins with http:// or https://")
    return raw.rstrip("/")


def _s3_prefix(raw: str) -> str:
    bucket, _, prefix = raw.removeprefix("s3://").strip("/").partition("/")
    if not raw.startswith("s3://") or raw.startswith("s3:///") or not bucket:
        raise ValueError("expected s3://bucket/prefix/")
    return f"s3://{bucket}/{prefix}/" if prefix else f"s3://{bucket}/"


def _names(raw: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in raw.split(",") if name.strip())


def _path(raw: str) -> Path:
    return Path(raw).expanduser().absolute()


def _paths(raw: str) -> tuple[Path, ...]:
    return tuple(_path(part) for part in raw.split(os.pathsep) if part.strip())


def _var(name: str, parse: Any = str, default: Any = "", *, secret: bool = False) -> Any:
    metadata = {"env": name, "parse": parse, "secret": secret}
    return field(default=default, repr=not secret, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One field per variable. An empty variable counts as unset."""

    s3_access_key_id: str = _var("S3_ACCESS_KEY_ID", secret=True)
    s3_secret_access_key: str = _var("S3_SECRET_ACCESS_KEY", secret=True)
    s3_bucket_name: str = _var("S3_BUCKET_NAME")
    s3_endpoint_url: str = _var("S3_ENDPOINT_URL")
    s3_region: str = _var("S3_REGION")
    s3_url_expires_s: float = _var("S3_URL_EXPIRES", _positive_seconds, 86_400.0)

    webhook_url: str = _var("WEBHOOK_URL", secret=True)
    webhook_secret: str = _var("WEBHOOK_SECRET", secret=True)
    webhook_second_secret: str = _var("WEBHOOK_SECOND_SECRET", secret=True)
    webhook_timeout_s: float = _var("WEBHOOK_TIMEOUT", _positive_seconds, 10.0)

    outbound_allow: Allowed = _var("OUTBOUND_ALLOW", Allowed.parse, Allowed())

    comfyui_home: Path = _var("COMFYUI_HOME", _path, PROJECT / ".comfyui")
    comfyui_dir: Path | None = _var("COMFYUI_DIR", _path, None)
    comfyui_python: Path | None = _var("COMFYUI_PYTHON", _path, None)
    comfyui_args: tuple[str, ...] = _var(
        "COMFYUI_ARGS", lambda raw: tuple(shlex.split(raw)), ("--disable-api-nodes",)
    )
    comfyui_port: int | None = _var("COMFYUI_PORT", _port, None)
    comfyui_data_dir: Path | None = _var("COMFYUI_DATA_DIR", _path, None)
    custom_nodes_required: tuple[str, ...] = _var("CUSTOM_NODES_REQUIRED", _names, ())
    comfyui_start_timeout_s: float = _var("COMFYUI_START_TIMEOUT", _seconds, 300.0)
    models_dirs: tuple[Path, ...] = _var("MODELS_DIR", _paths, ())
    model_manifests: tuple[str, ...] = _var("MODEL_MANIFESTS", _names, ())
    model_url_hosts: tuple[str, ...] = _var("MODEL_URLS", _names, ())
    models_s3_uri: str = _var("MODELS_S3_URI")
    provisioning_script: str = _var("PROVISIONING_SCRIPT", secret=True)
    benchmark_json_url: str = _var("BENCHMARK_JSON_URL", secret=True)
    standin_models_dir: Path | None = _var("STANDIN_MODELS_DIR", _path, None)

    workflow_templates: Path | None = _var("WORKFLOW_TEMPLATES", _path, None)
    load_any_file: bool = _var("LOAD_ANY_FILE", _switch, default=False)
    input_max_mb: int = _var("INPUT_MAX_MB", _positive, 1024)
    input_timeout_s: float = _var("INPUT_TIMEOUT", _positive_seconds, 300.0)
    input_buckets: tuple[str, ...] = _var("INPUT_BUCKETS", _names, ())
    keep_outputs_s: float = _var("KEEP_OUTPUTS", _seconds, 3600.0)
    clean_below_mb: int = _var("CLEAN_BELOW", _count, 512)
    clean_older_than_s: float = _var("CLEAN_OLDER_THAN", _seconds, 86_400.0)

    queue_url: str = _var("QUEUE_URL")
    queue_batch_size: int = _var("QUEUE_BATCH_SIZE", _batch_size, 1)
    on_failure_url: str = _var("ON_FAILURE_URL", secret=True)
    event_retries: int = _var("EVENT_RETRIES", _count, 2)
    event_max_age_s: float = _var("EVENT_MAX_AGE", _seconds, 21_600.0)
    serve_address: str = _var("SERVE_ADDRESS", default="127.0.0.1")
    serve_port: int = _var("SERVE_PORT", _port, 9000)
    serve_concurrency: int = _var("SERVE_CONCURRENCY", _positive, 1)
    serve_timeout_s: float = _var("SERVE_TIMEOUT", _positive_seconds, 900.0)
    serve_waiting: int = _var("SERVE_WAITING", _count, 100)
    gpus: int | None = _var("GPUS", _positive, None)
    jobs_may_overtake: int = _var("JOBS_MAY_OVERTAKE", _count, 10)
    serve_grace_s: float = _var("SERVE_GRACE", _positive_seconds, 25.0)
    dead_letter_queue_url: str = _var("DEAD_LETTER_QUEUE_URL")

    api_token: str = _var("API_TOKEN", secret=True)
    api_address: str = _var("API_ADDRESS", default="127.0.0.1")
    api_port: int = _var("API_PORT", _port, 18288)
    api_max_body_mb: int = _var("API_MAX_BODY", _positive, 64)
    jobs_queue_url: str = _var("JOBS_QUEUE_URL")

    router_address: str = _var("ROUTER_ADDRESS", default="127.0.0.1")
    router_port: int = _var("ROUTER_PORT", _port, 8080)
    router_token: str = _var("ROUTER_TOKEN", secret=True)
    router_worker_token: str = _var("ROUTER_WORKER_TOKEN", secret=True)
    router_endpoints: tuple[str, ...] = _var("ROUTER_ENDPOINTS", _names, ("comfyui",))
    router_balance: str = _var("ROUTER_BALANCE", _balance, "proportional")
    router_max_queue_s: float = _var("ROUTER_MAX_QUEUE", _seconds, 30.0)
    scale_machines: str = _var("SCALE_MACHINES")
    scale_max_workers: int = _var("SCALE_MAX_WORKERS", _positive, 16)
    scale_min_workers: int = _var("SCALE_MIN_WORKERS", _count, 5)
    scale_min_load: float = _var("SCALE_MIN_LOAD", _amount, 1.0)
    scale_target_util: float = _var("SCALE_TARGET_UTIL", _share, 0.9)
    scale_cold_mult: float = _var("SCALE_COLD_MULT", _multiple, 3.0)
    scale_min_cold_load: float = _var("SCALE_MIN_COLD_LOAD", _amount, 0.0)
    scale_target_queue_s: float = _var("SCALE_TARGET_QUEUE_TIME", _positive_seconds, 10.0)
    scale_inactivity_timeout_s: float | None = _var(
        "SCALE_INACTIVITY_TIMEOUT", _positive_seconds, None
    )
    router_url: str = _var("ROUTER_URL", _url)
    public_url: str = _var("PUBLIC_URL", _url)

    worker_dir_given: Path | None = _var("WORKER_DIR", _path, None)
    worker_hooks: tuple[str, ...] = _var("WORKER_HOOKS", _names, ())
    pyworker_log: Path | None = _var("PYWORKER_LOG", _path, None)
    idle_free_after_s: float | None = _var("IDLE_FREE_AFTER", _positive_seconds, None)
    idle_stop_after_s: float | None = _var("IDLE_STOP_AFTER", _positive_seconds, None)
    idle_exit_after_s: float | None = _var("IDLE_EXIT_AFTER", _positive_seconds, None)
    init_budget_s: float = _var("INIT_BUDGET", _seconds, 110.0)
    compile_cache: str = _var("COMPILE_CACHE", _s3_prefix)
    warmup_workflow: Path | None = _var("WARMUP_WORKFLOW", _path, None)
    benchmark: bool | None = _var("BENCHMARK", _switch, None)
    benchmark_json_path: Path | None = _var("BENCHMARK_JSON_PATH", _path, None)
    benchmark_test_width: int = _var("BENCHMARK_TEST_WIDTH", _positive, 512)
    benchmark_test_height: int = _var("BENCHMARK_TEST_HEIGHT", _positive, 512)
    benchmark_test_steps: int = _var("BENCHMARK_TEST_STEPS", _positive, 20)
    shutdown_grace_s: float = _var("SHUTDOWN_GRACE", _seconds, 0.0)
    deadline_margin_s: float = _var("DEADLINE_MARGIN", _seconds, 10.0)

    price_per_hour: float | None = _var("PRICE_PER_HOUR", _amount, None)

    jobs_table: str = _var("JOBS_TABLE")
    jobs_db: Path | None = _var("JOBS_DB", _path, None)
    jobs_expire_s: float = _var("JOBS_EXPIRE", _seconds, 86_400.0)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Settings":
        """Read all variables.

        Raises SettingsError, whose message lists all invalid variables and no secret's value.
        """
        values: dict[str, Any] = {}
        problems: list[str] = []
        for item in fields(cls):
            name = item.metadata["env"]
            raw = environ.get(name, "").strip()
            if not raw:
                continue
            try:
                values[item.name] = item.metadata["parse"](raw)
            except ValueError as error:
                shown = "" if item.metadata["secret"] else f" {raw!r}"
                problems.append(f"{name}{shown}: {error}")
        if problems:
            raise SettingsError("invalid environment variables: " + "; ".join(problems))
        return cls(**values)

    @property
    def has_benchmark(self) -> bool:
        """Whether the worker measures its score.

        BENCHMARK decides; without it, whether a workflow is named or a router uses the score.
        """
        if self.benchmark is not None:
            return self.benchmark
        return self.benchmark_json_path is not None or bool(self.router_url)

    @property
    def comfyui_code(self) -> Path:
        """The folder that holds ComfyUI's `main.py`."""
        return self.comfyui_dir or self.comfyui_home / "ComfyUI"

    @property
    def worker_dir(self) -> Path:
        """The folder of the worker's socket, lock and log; by default one per user and ComfyUI."""
        if self.worker_dir_given:
            return self.worker_dir_given
        digest = hashlib.sha256(str(self.comfyui_code).encode()).hexdigest()[:8]
        return Path(tempfile.gettempdir()) / f"lambda-comfyui-{os.getuid()}-{digest}"

    @property
    def provisioned_benchmark(self) -> Path:
        """Where `provision` puts the workflow of BENCHMARK_JSON_URL."""
        return self.worker_dir / "provisioned_benchmark.json"

    @property
    def comfyui_data(self) -> Path:
        """The folder that holds ComfyUI's output, input, temp and user folders."""
        return self.comfyui_data_dir or self.comfyui_code

    @property
    def comfyui_interpreter(self) -> Path:
        """The Python of ComfyUI: COMFYUI_PYTHON, the one in its folder, or the installed one."""
        if self.comfyui_python:
            return self.comfyui_python
        own = [self.comfyui_code / name / "bin" / "python" for name in ("venv", ".venv")]
        return next((p for p in own if p.exists()), self.comfyui_home / "venv" / "bin" / "python")

    @property
    def standins(self) -> Path:
        """The folder of the stand-in weights; it exists only where they were generated."""
        return self.standin_models_dir or self.comfyui_home / "standins"
