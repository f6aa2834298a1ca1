"""What the version of a ComfyUI decides: which routes its client uses."""

import json
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from handler.comfyui_api import ComfyUIApi, under_old_names
from handler.comfyui_version import ComfyUIVersion
from tests.conftest import run, worker_status
from tests.workflows import image

PROMPT_ID = "0b3b7f0e-54a5-4a3c-9d6c-0e2f1d9a1c55"


@pytest.mark.parametrize(
    ("text", "can_cancel", "replaces"),
    [
        ("", False, False),
        ("unknown", False, False),
        ("0.3.75", False, False),
        ("0.13.9", False, False),
        ("0.14.0", False, True),
        ("0.25.1", False, True),
        ("0.26.0", True, True),
        ("v0.33.0", True, True),
        ("0.46.0-rc1", True, True),
        ("1.0", True, True),
    ],
)
def test_version_says_what_comfyui_can(text: str, *, can_cancel: bool, replaces: bool) -> None:
    version = ComfyUIVersion(text)

    assert (version.has_cancel_route, version.replaces_nodes) == (can_cancel, replaces)


@pytest.fixture
def calls() -> Iterator[tuple[str, list[tuple[str, object]]]]:
    """The URL of a server that accepts everything, and the calls to it."""
    got: list[tuple[str, object]] = []

    class Call(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.path, json.loads(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Call) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", got
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (
            "0.25.0",
            [
                ("/queue", {"delete": [PROMPT_ID]}),
                ("/interrupt", {"prompt_id": PROMPT_ID}),
            ],
        ),
        ("0.26.0", [(f"/api/jobs/{PROMPT_ID}/cancel", {})]),
    ],
)
def test_prompt_is_cancelled_by_its_own_route_where_there_is_one(
    version: str,
    expected: list[tuple[str, object]],
    calls: tuple[str, list[tuple[str, object]]],
) -> None:
    url, got = calls
    with closing(ComfyUIApi(url, ComfyUIVersion(version))) as api:
        assert api.interrupt(PROMPT_ID, 10.0)

    assert got == expected


@pytest.mark.usefixtures("comfyui")
def test_cancel_of_an_unknown_prompt_is_answered() -> None:
    run(image())
    worker = worker_status()
    with closing(ComfyUIApi(worker.base_url, ComfyUIVersion(worker.comfyui_version))) as api:
        assert api.interrupt(PROMPT_ID, 10.0)


def test_inputs_of_an_old_class_are_declared_as_those_of_its_new_class() -> None:
    new = {
        "input": {"required": {"image": [["a.png"]]}, "optional": {"images": ["AUTOGROW"]}},
        "output_node": True,
    }
    mapping = [
        {"new_id": "image", "old_id": "file"},
        {"new_id": "images.image0", "old_id": "second"},
        {"new_id": "method", "set_value": "area"},
    ]

    assert under_old_names(new, mapping) == {
        "input": {"required": {"file": [["a.png"]], "second": ["AUTOGROW"]}},
        "output_node": True,
    }
    assert under_old_names(new, ()) == {"input": {"required": {}}, "output_node": True}
