"""Calls of the application that run no job, through uvicorn and with a SQLite store."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from handler.api.application import ApiContext, create_app
from handler.api.job_board import JobBoard
from handler.api.lambda_front import FunctionDispatcher
from handler.jobs.sqlite import SqliteStore
from runtime.lambda_host.http_front import HttpFront
from tests import workflows
from tests.workflows import event

pytestmark = pytest.mark.slow
LIMIT = 256 * 1024
FORM = {"Content-Type": "multipart/form-data; boundary=b"}


@pytest.fixture
def input_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "input"
    folder.mkdir()
    return folder


@pytest.fixture
def url(tmp_path: Path, input_folder: Path) -> Iterator[str]:
    store = SqliteStore(tmp_path / "jobs.sqlite")
    context = ApiContext(
        board=JobBoard(store, keep_s=60),
        # Accepted jobs wait: nothing takes them.
        dispatcher=FunctionDispatcher(lambda _: None),
        max_body_bytes=LIMIT,
        fit=lambda response: response,
        input_folder=input_folder,
        templates_folder=input_folder.with_name("templates"),
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        front = HttpFront(create_app(context), listener)
        front.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        front.stop()
    store.close()


def test_templates_are_listed_once_their_folder_is_there(url: str, tmp_path: Path) -> None:
    missing = requests.get(f"{url}/templates", timeout=30)
    folder = tmp_path / "templates"
    folder.mkdir()
    template = {"workflow": workflows.image(), "parameters": {}}
    (folder / "Image.json").write_text(json.dumps(template))

    listed = requests.get(f"{url}/templates", timeout=30)

    assert missing.status_code == 503
    assert "WORKFLOW_TEMPLATES: cannot read" in missing.json()["message"]
    assert listed.json() == {"templates": [{"name": "Image", "description": "", "parameters": {}}]}


def upload(url: str, name: str, content: bytes = b"x", **fields: str) -> requests.Response:
    form: dict[str, Any] = {"image": (name, content)}
    return requests.post(f"{url}/upload/image", files=form, data=fields, timeout=30)


def test_id_with_line_ends_is_not_that_of_another_job(url: str) -> None:
    for request_id in ("a", "a\n", "a\r\nb"):
        body = event(workflows.image(), request_id=request_id)
        assert requests.post(f"{url}/generate", json=body, timeout=30).status_code == 202

    for quoted, request_id in (("a", "a"), ("a%0A", "a\n"), ("a%0D%0Ab", "a\r\nb")):
        answer = requests.get(f"{url}/result/{quoted}", timeout=30)
        assert answer.json()["id"] == request_id
    assert requests.post(f"{url}/cancel/a%0A", timeout=30).json()["status"] == "cancelled"
    assert requests.get(f"{url}/result/a", timeout=30).json()["status"] == "queued"


def test_upload_without_an_end_is_cut_off_at_the_limit(url: str, input_folder: Path) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        while sent < 400 * LIMIT:
            sent += LIMIT
            yield b" " * LIMIT

    answer = requests.post(f"{url}/upload/image", data=endless(), headers=FORM, timeout=60)

    assert answer.status_code == 413
    # Beyond the limit, as much as the buffers of a connection hold.
    assert sent < 200 * LIMIT
    assert list(input_folder.iterdir()) == []


@pytest.mark.parametrize(
    "subfolder", ["/etc", "..", "a/../../b", "a\0b", "n" * 300, "/".join(["n"] * 5000), "a.png"]
)
def test_subfolder_that_cannot_be_is_a_400(url: str, subfolder: str) -> None:
    upload(url, "a.png")

    answer = upload(url, "b.png", subfolder=subfolder)

    assert answer.status_code == 400
    assert answer.json()["message"].startswith("subfolder: ")


@pytest.mark.parametrize("name", ["..", "n" * 300, "folder"])
@pytest.mark.parametrize("overwrite", ["true", "false"])
def test_name_that_cannot_be_is_a_400(url: str, name: str, overwrite: str) -> None:
    upload(url, "a.png", subfolder="folder")

    answer = upload(url, name, overwrite=overwrite)

    assert answer.status_code == 400
    assert answer.json()["message"].startswith("image: ")


def test_client_that_leaves_before_its_body_has_come_is_no_error_of_ours(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    address = url.removeprefix("http://").split(":")
    for path in ("/generate", "/generate/sync", "/upload/image"):
        with socket.create_connection((address[0], int(address[1]))) as client:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM['Content-Type']}\r\n"
            client.sendall(f"{head}Content-Length: 100\r\nExpect: 100-continue\r\n\r\n".encode())
            # The route waits for the body now.
            assert b"100 Continue" in client.recv(1000)
        # The server has noticed at the latest when it answers the next clients.
        assert requests.get(f"{url}/health", timeout=30).ok

    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "TRACE", "ANY"])
@pytest.mark.parametrize(("path", "status"), [("/generate", 405), ("/nowhere", 404)])
def test_every_other_call_is_answered_in_json(
    url: str, method: str, path: str, status: int
) -> None:
    answer = requests.request(method, url + path, timeout=30)

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert method == "HEAD" or json.loads(answer.text)["message"]
