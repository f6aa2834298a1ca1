"""`lambda-comfyui nodes`: a lock file of a ComfyUI's custom nodes, their installation, their check.

What the lock file contains is in runtime/custom_nodes/lock_file.py, how it is made and installed in
runtime/custom_nodes/install.py.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from handler.settings import Settings
from runtime.custom_nodes import install
from runtime.custom_nodes.lock_file import DEFAULT_PATH, read_lock, write_lock
from runtime.worker.comfyui_process import ComfyUIProcess
from runtime.worker.start_reports import ALL


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    lock = actions.add_parser(
        "lock", help="write a lock file of the custom nodes that ComfyUI has now"
    )
    lock.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="NAME",
        help="leave out this folder or file of custom_nodes; may be repeated",
    )
    add = actions.add_parser(
        "install", help="install the custom nodes of a lock file, and their packages, into ComfyUI"
    )
    actions.add_parser(
        "check", help="start ComfyUI once, and fail if it cannot import one of its custom nodes"
    )
    for action in (lock, add):
        action.add_argument(
            "file", type=Path, nargs="?", default=DEFAULT_PATH, help="default: %(default)s"
        )


def run(args: argparse.Namespace, settings: Settings) -> int:
    """0: done. Raises the errors of runtime/custom_nodes/, and ComfyUIStartError."""
    if args.action == "check":
        _check(settings)
    elif args.action == "lock":
        nodes = install.lock(settings.comfyui_code, args.without)
        write_lock(args.file, nodes)
        print(f"{args.file}: {len(nodes)} custom nodes")
    else:
        install.install(read_lock(args.file), settings.comfyui_code, settings.comfyui_interpreter)
    return 0


def _check(settings: Settings) -> None:
    with tempfile.TemporaryDirectory() as folder:
        # Beside a worker that runs: neither its files nor its port.
        own = replace(
            settings,
            comfyui_data_dir=Path(folder),
            comfyui_port=0,
            custom_nodes_required=(*settings.custom_nodes_required, ALL),
        )
        process = ComfyUIProcess(own, on_end=lambda: None)
        try:
            process.wait_until_ready(settings.comfyui_start_timeout_s, lambda: False)
        finally:
            process.stop()
    print("ComfyUI imports all of its custom nodes")
