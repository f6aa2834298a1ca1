"""Measures how long a job waits for its models on an empty disk, at a tenth of the real sizes.

`python -m benchmarks.weights`: the models of Wan 2.2 (3.7 GB, see scaled_wan.py) come over a line
of 0.2 GB/s (`--rate`) from a server on this machine, which counts the bytes. Two sides, in turn:

- fetched first: all models are on the disk before the worker starts.
- streamed: the worker starts at once, and each model comes when it is needed.

The clock runs from the start of the download or of the worker. It stops when the first prompt is
encoded, when the first sampler starts, and at the end of the job. `--encode trivial` replaces the
encoding of the prompts, which takes long on a CPU and hides the downloads behind it.

The floors: the first encode cannot begin before ComfyUI has booted, nor before the VAE and the text
encoder are there; the first sampler not before the encoding has ended, nor before the first
diffusion model is there, too. `--disk 0.9` puts the models on a tmpfs of that share of their size.
"""

import argparse
import json
import mmap
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.place import own_environment, wait_for
from benchmarks.raw_client import RawClient
from handler.load_order import models_in_order
from handler.settings import PROJECT, Settings
from handler.worker_client import WorkerClient
from handler.worker_protocol import SOCKET_NAME
from runtime.models.download import Downloader
from runtime.models.manifest import Manifest, read_manifest
from runtime.models.parts import is_placeholder
from tests.model_server import ModelServer, model_server

_FOLDER = Path(__file__).parent
_SAMPLE = PROJECT / "events" / "samples" / "direct_wan22_t2v_small.json"
FIRST_ENCODE, FIRST_STEP, END = "first encode", "first step", "end"
TEXT_IS_THERE, HIGH_IS_THERE = "text encoder is there", "first diffusion model is there"
# The shares of the bytes that are needed by then, with what the order of need may miss.
BYTE_GOALS = {TEXT_IS_THERE: 0.22, FIRST_ENCODE: 0.22, HIGH_IS_THERE: 0.63, FIRST_STEP: 0.63}
_LOOK_EVERY_S = 0.05
TIME_GOAL = 1.15


@dataclass(slots=True)
class Clock:
    """Seconds since the start, and bytes that the server has sent, when something happened."""

    server: ModelServer
    began: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)

    def note(self, what: str) -> None:
        if what not in self.seconds:
            self.seconds[what] = time.perf_counter() - self.began
            self.bytes[what] = sum(self.server.sent_bytes.values())
            print(f"  {what} after {self.seconds[what]:.1f} s", file=sys.stderr)


class WatchingClient(RawClient):
    """Notes when the nodes that matter start."""

    def __init__(self, base_url: str, workflow: dict[str, Any], clock: Clock) -> None:
        super().__init__(base_url)
        self._workflow, self._clock = workflow, clock

    def on_message(self, message: dict[str, Any]) -> None:
        if message["type"] == "executing" and (node_id := message["data"]["node"]):
            class_type = self._workflow[node_id]["class_type"]
            if class_type.endswith("TextEncode"):
                self._clock.note(FIRST_ENCODE)
            if class_type == "KSamplerAdvanced":
                self._clock.note(FIRST_STEP)


def workflow(encode: str) -> dict[str, Any]:
    """The documented workflow with a step for each sampler, in the smallest size."""
    graph: dict[str, Any] = json.loads(_SAMPLE.read_text())["input"]["workflow_json"]
    for node in graph.values():
        if encode == "trivial" and node["class_type"] == "CLIPTextEncode":
            node["class_type"] = "TrivialTextEncode"
        if node["class_type"] == "KSamplerAdvanced":
            is_first = node["inputs"]["add_noise"] == "enable"
            steps = {"start_at_step": 0, "end_at_step": 1} if is_first else {"start_at_step": 1}
            node["inputs"] |= {"noise_seed": 1, "steps": 2, **steps}
        if node["class_type"] == "EmptyHunyuanLatentVideo":
            node["inputs"] |= {"width": 64, "height": 64, "length": 5}
    return graph


def write_models(folder: Path, settings: Settings) -> None:
    writer = _FOLDER / "scaled_wan.py"
    subprocess.run(
        [settings.comfyui_interpreter, writer, settings.comfyui_code, settings.standins, folder],
        check=True,
        stderr=subprocess.DEVNULL,
    )


def publish(models: Path, server: ModelServer, manifest: Path) -> Manifest:
    """Offer the models on the server; the manifest is written in the order of the names."""
    files = []
    for path in sorted(models.rglob("*.safetensors")):
        with path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        files.append(
            {
                "file": path.name,
                "folder": path.parent.name,
                "size": path.stat().st_size,
                "sources": [server.add(path.name, content)],  # type: ignore[arg-type]
            }
        )
    manifest.write_text(yaml.safe_dump({"name": "scaled", "files": files}))
    return read_manifest(manifest, Settings())


@contextmanager
def empty_disk(share: float, total_bytes: int) -> Iterator[Path]:
    """A folder for the models, on a disk of its own if it is to be smaller than they are."""
    with tempfile.TemporaryDirectory(prefix="lc-bench-models-") as name:
        if not share:
            yield Path(name)
            return
        size = int(total_bytes * share)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", name], check=True)
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "--lazy", name], check=True)


def fetch_all(manifest: Manifest, folder: Path, settings: Settings) -> None:
    targets = [folder / file.folder / file.name for file in manifest.files]
    with Downloader(settings) as downloader:
        for file, target in zip(manifest.files, targets, strict=True):
            downloader.add(file, target)
        downloader.wait(targets)
        failed = [state.error for state in downloader.states() if state.error]
    if failed:
        raise SystemExit(f"nothing was measured: {failed[0]}")


def run_job(graph: dict[str, Any], clock: Clock, settings: Settings) -> None:
    """Start a worker and run the job on it."""
    worker = WorkerClient(settings)
    process = subprocess.Popen(
        [sys.executable, "-m", "runtime", "worker"], cwd=PROJECT, stderr=subprocess.DEVNULL
    )
    with ExitStack() as stack:
        stack.callback(process.wait, 60)
        stack.callback(process.terminate)
        stack.callback(worker.close)
        wait_for((settings.worker_dir / SOCKET_NAME).exists)
        worker.begin_wake(models_in_order(graph))
        ready = worker.wait_ready(None)
        clock.note("boot")
        client = WatchingClient(ready.base_url, graph, clock)
        stack.callback(client.close)
        client.run(graph)
        clock.note(END)


def measure(side: str, graph: dict[str, Any], place: "Place") -> Clock:
    place.server.sent_bytes.clear()
    is_streamed = side == "streamed"
    share = place.disk if is_streamed else 0.0
    with empty_disk(share, place.total_bytes) as folder, own_environment():
        os.environ |= {
            "MODELS_DIR": str(folder),
            "STANDIN_MODELS_DIR": "/nonexistent",
            "CLEAN_BELOW": "0",
            "COMFYUI_ARGS": f"--disable-api-nodes --extra-model-paths-config {place.nodes}",
        }
        if is_streamed:
            os.environ["MODEL_MANIFESTS"] = str(place.manifest_path)
        settings = Settings.from_env(os.environ)
        clock = Clock(place.server)
        if not is_streamed:
            fetch_all(place.manifest, folder, settings)
        with ExitStack() as stack:
            if is_streamed:
                stack.enter_context(noting_arrivals(folder, graph, clock))
            run_job(graph, clock, settings)
        return clock


@contextmanager
def noting_arrivals(folder: Path, graph: dict[str, Any], clock: Clock) -> Iterator[None]:
    """Note when the models are complete, whether or not a loader waits for them."""
    _, text, high, _ = models_in_order(graph)
    targets = {
        TEXT_IS_THERE: folder / "text_encoders" / text,
        HIGH_IS_THERE: folder / "diffusion_models" / high,
    }
    has_ended = threading.Event()

    def look() -> None:
        while not has_ended.wait(_LOOK_EVERY_S):
            for what, target in targets.items():
                if target.exists() and not is_placeholder(target):
                    clock.note(what)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join()


@dataclass(frozen=True, slots=True)
class Place:
    """What all runs share.

    `disk` is the size of the disk as a share of the models, 0 for any; `rate` is in bytes a second.
    """

    server: ModelServer
    manifest: Manifest
    manifest_path: Path
    nodes: Path
    disk: float
    rate: float

    @property
    def total_bytes(self) -> int:
        return sum(file.size_bytes or 0 for file in self.manifest.files)

    def needed_bytes(self, graph: dict[str, Any], count: int) -> int:
        """The size of the first models of the order of need."""
        sizes = {file.name: file.size_bytes or 0 for file in self.manifest.files}
        return sum(sizes[name] for name in models_in_order(graph)[:count])


def report(sides: dict[str, Clock], graph: dict[str, Any], place: Place) -> None:
    for side, clock in sides.items():
        for what, seconds in clock.seconds.items():
            share = clock.bytes[what] / place.total_bytes
            goal = BYTE_GOALS.get(what) if side == "streamed" else None
            verdict = f"  <= {goal:g}: {'met' if share <= goal else 'MISSED'}" if goal else ""
            print(f"{side:14} {what:30} {seconds:7.1f} s  bytes {share:5.3f}{verdict}")
    streamed = sides["streamed"].seconds
    # The other side has nothing to wait for between these two.
    other = sides["fetched first"].seconds
    encode_s = other[FIRST_STEP] - other[FIRST_ENCODE]
    boot_s = streamed["boot"]
    floors = {
        FIRST_ENCODE: max(boot_s, place.needed_bytes(graph, 2) / place.rate),
        FIRST_STEP: max(boot_s + encode_s, place.needed_bytes(graph, 3) / place.rate),
    }
    for what, floor_s in floors.items():
        ratio = streamed[what] / floor_s
        verdict = "met" if ratio <= TIME_GOAL else "MISSED"
        print(f"{what:13} floor {floor_s:5.1f} s, ratio {ratio:.2f}  <= {TIME_GOAL:g}: {verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weights")
    parser.add_argument("--encode", choices=["trivial", "real"], default="trivial")
    parser.add_argument("--disk", type=float, default=0.0, help="e.g. 0.9 (needs root)")
    parser.add_argument("--rate", type=float, default=0.2, help="GB/s, default: %(default)s")
    parser.add_argument("--models", type=Path, help="a folder that scaled_wan.py has written")
    args = parser.parse_args()
    graph = workflow(args.encode)
    with tempfile.TemporaryDirectory(prefix="lc-bench-") as name, model_server() as server:
        models = args.models or Path(name) / "models"
        if not args.models:
            write_models(models, Settings.from_env(os.environ))
        nodes = Path(name) / "nodes.yaml"
        nodes.write_text(yaml.safe_dump({"nodes": {"custom_nodes": str(_FOLDER / "nodes")}}))
        manifest_path = Path(name) / "manifest.yaml"
        manifest = publish(models, server, manifest_path)
        server.bytes_per_s = args.rate * 1e9
        place = Place(server, manifest, manifest_path, nodes, args.disk, server.bytes_per_s)
        print(f"{place.total_bytes / 1e9:.2f} GB at {args.rate:g} GB/s")
        sides = {side: measure(side, graph, place) for side in ("fetched first", "streamed")}
        report(sides, graph, place)


if __name__ == "__main__":
    main()
