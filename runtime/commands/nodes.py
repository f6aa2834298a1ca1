"""`lambda-comfyui nodes`: a lock file of a ComfyUI's custom nodes, and their installation.

What the lock file contains is in runtime/custom_nodes/lock_file.py, what the commands do in
runtime/custom_nodes/install.py.
"""

import argparse
from pathlib import Path

from handler.settings import Settings
from runtime.custom_nodes import install
from runtime.custom_nodes.lock_file import DEFAULT_PATH, read_lock, write_lock


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
    for action in (lock, add):
        action.add_argument(
            "file", type=Path, nargs="?", default=DEFAULT_PATH, help="default: %(default)s"
        )


def run(args: argparse.Namespace, settings: Settings) -> int:
    """0: done. Raises the errors of runtime/custom_nodes/."""
    if args.action == "lock":
        nodes = install.lock(settings.comfyui_code, args.without)
        write_lock(args.file, nodes)
        print(f"{args.file}: {len(nodes)} custom nodes")
    else:
        install.install(read_lock(args.file), settings.comfyui_code, settings.comfyui_interpreter)
    return 0
