"""The words of the messages between handlers and the worker: written in one module alone."""

import ast
from pathlib import Path
from typing import get_args

from handler import worker_protocol
from handler.settings import PROJECT
from handler.worker_protocol import DEPTHS, LOG_NAME, SOCKET_NAME, Answer, Depth, Request, State


def test_deeper_sleep_includes_the_lighter_ones() -> None:
    assert Depth.AWAKE < Depth.FREE < Depth.STOP < Depth.EXIT


# Words of the response, of what commands print, and of ComfyUI's messages, that mean something else
# there.
OTHER_MEANINGS = {"status", "failed", "stopped", "state", "stop"}


def test_words_of_the_protocol_are_in_its_module_alone() -> None:
    names = {kind.NAME for kind in get_args(Request | Answer)}
    words = {SOCKET_NAME, LOG_NAME, *names, *State, *DEPTHS} - OTHER_MEANINGS

    elsewhere = {
        f"{path.relative_to(PROJECT)}:{node.lineno}: {node.value!r}"
        for package in ("handler", "runtime")
        for path in (PROJECT / package).rglob("*.py")
        if path != Path(worker_protocol.__file__)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in words
    }

    assert elsewhere == set()
