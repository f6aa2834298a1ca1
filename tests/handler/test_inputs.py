"""Input files by URL, data: URI and bucket, on the real ComfyUI and from servers that misbehave."""

import base64
import gzip
import json
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from events.errors import class_of
from events.job import Caller, Job, S3Override
from handler import app
from handler.clock import Deadline
from handler.inputs.input_folder import InputFolder
from handler.inputs.job_inputs import JobInputs
from handler.inputs.references import is_reference, loads_file, references_in
from handler.inputs.sources import BadReference, Limits, NotReachable, open_source
from handler.outbound import Allowed
from handler.settings import Settings
from runtime.local_s3 import LocalS3
from tests.aws import bucket_client
from tests.conftest import Context, run
from tests.handler.test_storage import s3_fields
from tests.processes import wait_until
from tests.workflows import event, node

LOCAL = Settings(outbound_allow=Allowed.parse("127.0.0.1"))


def png(red: int, green: int = 0, blue: int = 0) -> bytes:
    """A picture of one pixel: https://www.w3.org/TR/png-3/."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    pixel = zlib.compress(bytes([0, red, green, blue]))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixel) + chunk(b"IEND", b"")
    )


class Server:
    """A real HTTP server; `answers` has what each path does."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.url = ""

    def serve(self, path: str, body: bytes, status: int = 200, **headers: str) -> str:
        """The URL of a path that answers with this body."""

        def answer(call: BaseHTTPRequestHandler) -> None:
            call.send_response(status)
            for name, value in {"Content_Length": str(len(body)), **headers}.items():
                call.send_header(name.replace("_", "-"), value)
            call.end_headers()
            call.wfile.write(body)

        self.answers[path] = answer
        return self.url + path


@contextmanager
def http_server() -> Iterator[Server]:
    server = Server()

    class Call(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            server.calls.append(path)
            try:
                server.answers[path](self)
            except (ConnectionError, KeyError):
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Call) as http:
        http.daemon_threads = True
        server.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, args=(0.05,))
        thread.start()
        yield server
        http.shutdown()
        thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    with http_server() as server:
        yield server


def limits(max_bytes: int = 1024 * 1024, seconds: float = 20.0) -> Limits:
    until = time.monotonic() + seconds

    def check() -> None:
        if time.monotonic() > until:
            raise NotReachable("its download takes too long")

    return Limits(max_bytes, check)


def fetch(value: str, settings: Settings = LOCAL, given: Limits | None = None) -> bytes:
    with open_source(value, S3Override(), settings, given or limits()) as content:
        return b"".join(content.chunks)


def test_url_gives_its_bytes_and_the_suffix_of_its_path_or_its_media_type(server: Server) -> None:
    for path, media_type, suffix in (
        ("/a.PNG", "text/html", ".png"),
        ("/a", "image/jpeg", ".jpg"),
        ("/b", "video/mp4; x=1", ".mp4"),
        ("/c.not a suffix", "", ""),
    ):
        url = server.serve(path.replace(" ", "%20"), b"bytes", Content_Type=media_type)
        with open_source(url, S3Override(), LOCAL, limits()) as content:
            assert (b"".join(content.chunks), content.suffix) == (b"bytes", suffix)


def test_redirects_are_followed_and_each_is_checked(server: Server) -> None:
    target = server.serve("/target", b"bytes")
    url = server.serve("/from", b"", 302, Location="/target")
    assert fetch(url) == b"bytes"
    for place in ("http://169.254.169.254/latest", "file:///etc/passwd", "http://10.0.0.1/"):
        server.serve("/from", b"", 302, Location=place)
        with pytest.raises(BadReference):
            fetch(url)
    for place in ("http://[::1", "http://[bad]/", "http://127.0.0.1:99999/"):
        server.serve("/from", b"", 302, Location=place)
        with pytest.raises(BadReference, match="redirects to none"):
            fetch(url)
    server.serve("/from", b"", 302, Location="/from")
    with pytest.raises(BadReference, match="redirects more than 5 times"):
        fetch(url)
    # A name that resolves to loopback.
    with pytest.raises(BadReference, match="private or local network"):
        fetch(target.replace("127.0.0.1", "localhost"), Settings())


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_answer_that_will_not_change_is_the_callers(server: Server, status: int) -> None:
    with pytest.raises(BadReference, match=f"HTTP {status}"):
        fetch(server.serve("/x", b"", status))
    assert len(server.calls) == 1


def test_answer_that_may_change_is_asked_for_again(server: Server) -> None:
    with pytest.raises(NotReachable, match="HTTP 503, 3 times"):
        fetch(server.serve("/x", b"", 503))
    assert len(server.calls) == 3


def test_server_that_is_gone_is_not_reachable(server: Server) -> None:
    with pytest.raises(NotReachable, match="cannot be reached"):
        fetch("http://127.0.0.1:1/x.png")


def test_body_that_is_shorter_than_announced_is_cut_off(server: Server) -> None:
    with pytest.raises(NotReachable, match="cut off"):
        fetch(server.serve("/x", b"12345", Content_Length="500"))


def test_body_above_the_limit_is_refused_whether_it_is_announced_or_not(
    server: Server, tmp_path: Path
) -> None:
    folder = InputFolder(tmp_path / "input", tmp_path / "locks")

    def endless(call: BaseHTTPRequestHandler) -> None:
        call.send_response(200)
        call.end_headers()
        while True:
            call.wfile.write(b"x" * 65_536)

    server.answers["/endless"] = endless
    announced = server.serve("/large", b"x" * 2_000_000)
    for url in (server.url + "/endless", announced):
        with (
            pytest.raises(BadReference, match="larger than 1 MiB"),
            open_source(url, S3Override(), LOCAL, limits()) as content,
        ):
            folder.store(content, "", 1024 * 1024, lambda: None)
    assert list((tmp_path / "input").iterdir()) == []


def test_coded_body_is_refused(server: Server) -> None:
    bomb = gzip.compress(b"\0" * 100_000_000)

    with pytest.raises(BadReference, match="sent it as gzip"):
        fetch(server.serve("/bomb", bomb, Content_Encoding="gzip"))


def test_body_that_drips_ends_with_the_time_of_the_job(server: Server) -> None:
    def drip(call: BaseHTTPRequestHandler) -> None:
        call.send_response(200)
        call.end_headers()
        while True:
            call.wfile.write(b"x")
            call.wfile.flush()
            time.sleep(0.05)

    server.answers["/drip"] = drip
    with pytest.raises(NotReachable, match="takes too long"):
        fetch(server.url + "/drip", given=limits(seconds=0.5))


PNG = png(255)


@pytest.mark.parametrize(
    "text",
    [
        "data:image/png;base64," + base64.b64encode(PNG).decode(),
        "DATA:;base64," + base64.b64encode(PNG).decode().rstrip("="),
        "data:image/png;base64," + base64.urlsafe_b64encode(PNG).decode(),
        "data:image/png;base64,\n" + base64.encodebytes(PNG).decode(),
        "data:image/png," + "".join(f"%{byte:02x}" for byte in PNG),
    ],
)
def test_data_uri_is_decoded(text: str) -> None:
    with open_source(text.strip(), S3Override(), LOCAL, limits()) as content:
        assert (b"".join(content.chunks), content.suffix) == (PNG, ".png")


def test_base64_without_a_prefix_is_decoded() -> None:
    picture = PNG + b"\0" * 300

    assert fetch(base64.b64encode(picture).decode()) == picture


@pytest.mark.parametrize("text", ["A", "AAAAA", "ab=c", "a?b=", "é", ""])
def test_damaged_base64_is_called_so(text: str) -> None:
    with pytest.raises(BadReference, match=r"damaged|empty"):
        fetch("data:image/png;base64," + text)


def test_references_are_texts_that_are_a_url_as_a_whole() -> None:
    assert all(map(is_reference, ("http://a/b", "HTTPS://a", "s3://b/k", "data:,x", "A" * 300)))
    assert not any(map(is_reference, ("see http://a/b", "http://a b", "ftp://a/b", "a.png", "")))
    # Quadratic time would be minutes.
    assert not is_reference("A" + " " * 1_000_000 + "!")
    workflow = {"1": node("A", text="http://a", number=1, link=["2", 0]), "2": node("B")}
    assert [(r.node_id, r.name) for r in references_in(workflow)] == [("1", "text")]


@pytest.mark.parametrize(
    ("declared", "is_file"),
    [
        ([["a.png"], {"image_upload": True}], True),
        (["COMBO", {"video_upload": True, "options": []}], True),
        ([[], {"file_upload": True}], True),
        ([["a.png"]], False),
        (["STRING", {"multiline": True}], False),
        ([["a.png"], {"image_upload": False}], False),
    ],
)
def test_node_says_which_of_its_inputs_is_a_file(declared: Any, is_file: bool) -> None:
    assert loads_file({"input": {"optional": {"x": declared}}}, "x") is is_file
    assert not loads_file({}, "x")


def load(*images: str) -> dict[str, Any]:
    """A workflow that saves each picture that it loads."""
    workflow: dict[str, Any] = {}
    for number, picture in enumerate(images):
        workflow[f"l{number}"] = node("LoadImage", image=picture)
        workflow[f"s{number}"] = node("SaveImage", images=[f"l{number}", 0], filename_prefix="in")
    return workflow


def pixels(response: dict[str, Any]) -> list[tuple[int, ...]]:
    import av  # noqa: PLC0415 - only here

    found = []
    for item in response["output"]:
        with av.open(item["local_path"]) as file:
            frame = next(file.decode(video=0)).reformat(format="rgb24")
        found.append(tuple(bytes(frame.planes[0])[:3]))
    return found


@pytest.mark.usefixtures("comfyui")
def test_pictures_by_url_and_data_are_loaded_as_they_are(server: Server) -> None:
    with http_server() as other:
        # The same basename.
        urls = (server.serve("/in/a.png", png(255)), other.serve("/a.png", png(0, 255)))
        data = "data:image/png;base64," + base64.b64encode(png(0, 0, 255)).decode()
        response = run(load(*urls, data, urls[0]))

    assert response["status"] == "completed", response["message"]
    assert sorted(pixels(response)) == [(0, 0, 255), (0, 255, 0), (255, 0, 0), (255, 0, 0)]
    assert server.calls == ["/in/a.png"]


@pytest.mark.usefixtures("comfyui")
def test_input_of_a_message_is_fetched(server: Server) -> None:
    body = json.dumps(event(load(server.serve("/q.png", png(9))), request_id="from-sqs"))
    record = {"messageId": "m", "eventSource": "aws:sqs", "body": body}

    assert app.lambda_handler({"Records": [record]}, Context(60)) == {"batchItemFailures": []}
    assert server.calls == ["/q.png"]


@pytest.mark.usefixtures("comfyui")
def test_object_of_a_bucket_is_loaded_with_the_keys_of_the_request(s3: LocalS3) -> None:
    client = bucket_client(s3)
    client.put_object(Bucket=s3.bucket_name, Key="in put/ü.png", Body=png(1, 2, 3))
    uri = f"s3://{s3.bucket_name}/in%20put/ü.png"

    response = run(load(uri), s3=s3_fields(s3))
    missing = run(load(f"s3://{s3.bucket_name}/nowhere.png"), s3=s3_fields(s3))
    foreign = run(load("s3://foreign/x.png"))

    assert pixels(response) == [(1, 2, 3)]
    assert "S3 answered NoSuchKey" in missing["message"]
    assert "INPUT_BUCKETS" in foreign["message"]
    assert {r["error"]["type"] for r in (missing, foreign)} == {"InvalidRequest"}


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"secret_access_key": "wrong"}, "SignatureDoesNotMatch"),
        ({"access_key_id": "wrong"}, "S3 answered"),
        ({"endpoint_url": "no url"}, "check s3.endpoint_url"),
    ],
)
def test_wrong_store_of_the_request_is_the_callers(
    s3: LocalS3, given: dict[str, str], problem: str
) -> None:
    override = S3Override(**s3_fields(s3, **given))

    with (
        pytest.raises(BadReference, match=problem),
        open_source(f"s3://{s3.bucket_name}/a.png", override, LOCAL, limits()),
    ):
        pass


def test_keys_of_the_request_are_used_where_it_names_no_bucket(
    s3: LocalS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker's own keys, which boto3 finds here, would read the object."""
    client = bucket_client(s3)
    client.put_object(Bucket=s3.bucket_name, Key="a.png", Body=PNG)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_access_key)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.endpoint_url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    wrong = S3Override(access_key_id="callers", secret_access_key="callers")

    with (
        pytest.raises(BadReference, match="S3 answered"),
        open_source(f"s3://{s3.bucket_name}/a.png", wrong, LOCAL, limits()),
    ):
        pass


@pytest.mark.usefixtures("comfyui")
def test_latent_and_model_are_loaded_although_their_nodes_declare_no_upload_or_a_subfolder(
    server: Server,
) -> None:
    # A file of safetensors with one tensor: https://huggingface.co/docs/safetensors
    header = b'{"latent_tensor":{"dtype":"F32","shape":[1,4,1,1],"data_offsets":[0,16]}}'
    latent = struct.pack("<Q", len(header)) + header + struct.pack("<4f", 1, 2, 3, 4)
    workflow = {
        "1": node("LoadLatent", latent=server.serve("/a.latent", latent)),
        "2": node("PreviewAny", source=["1", 0]),
    }
    assert (response := run(workflow))["status"] == "completed", response["message"]

    picture = "data:image/png;base64," + base64.b64encode(PNG).decode()
    assert run(load(picture))["status"] == "completed"
    image = f"{sha256(PNG).hexdigest()}.png"
    views = dict.fromkeys(("image", "mask", "normal"), image)
    workflow = {
        "1": node(
            "Load3D",
            model_file=server.serve("/a.obj", b"v 0 0 0\n"),
            image={**views, "recording": "", "camera_info": {}},
            width=8,
            height=8,
        ),
        "2": node("PreviewAny", source=["1", 2]),
    }
    assert (response := run(workflow))["status"] == "completed", response["message"]


@pytest.mark.usefixtures("comfyui")
def test_prompt_that_is_a_url_is_left_alone(server: Server) -> None:
    url = server.serve("/prompt", b"bytes")
    workflow = {
        "1": node("PrimitiveString", value=url),
        "2": node("PreviewAny", source=["1", 0]),
    }

    assert run(workflow)["status"] == "completed"
    assert server.calls == []


@pytest.mark.usefixtures("comfyui")
def test_input_that_cannot_be_had_names_node_input_and_reason(server: Server) -> None:
    url = server.serve("/gone.png", b"", 404) + "?token=canary-4711"

    response = run(load(url))

    error = response["error"]
    assert class_of(error).__name__ == "InvalidRequest"
    assert error["node_id"] == "l0"
    assert "input.workflow_json.l0.inputs.image" in error["message"]
    assert "HTTP 404" in error["message"]
    assert "canary-4711" not in json.dumps({**response, "comfyui_response": {}})
    assert run(load(server.serve("/down.png", b"", 503)))["error"]["type"] == "InputUnavailable"


def test_many_that_want_one_file_fetch_it_once(server: Server, tmp_path: Path) -> None:
    release = threading.Event()

    def slow(call: BaseHTTPRequestHandler) -> None:
        release.wait(10)
        call.send_response(200)
        call.send_header("Content-Length", "5")
        call.end_headers()
        call.wfile.write(b"bytes")

    server.answers["/one.png"] = slow
    url = server.url + "/one.png"
    folder = InputFolder(tmp_path / "input", tmp_path / "locks")
    waiting = threading.Semaphore(0)

    def store() -> str:
        with open_source(url, S3Override(), LOCAL, limits()) as content:
            return folder.store(content, "", 100, lambda: None)

    def check() -> None:
        waiting.release()

    with ThreadPoolExecutor(10) as pool:
        futures = [pool.submit(folder.fetch, url, store, check) for _ in range(10)]
        for _ in range(9):
            assert waiting.acquire(timeout=10)
        release.set()
        names = {future.result(20) for future in futures}

    assert len(server.calls) == 1
    assert [path.name for path in (tmp_path / "input").iterdir()] == [*names]
    assert (tmp_path / "input" / names.pop()).read_bytes() == b"bytes"
    assert list((tmp_path / "locks").iterdir()) == []


def test_same_content_keeps_its_name_and_its_time(server: Server, tmp_path: Path) -> None:
    folder = InputFolder(tmp_path / "input", tmp_path / "locks")
    files = []
    for path in ("/a.png", "/b.png"):
        with open_source(server.serve(path, PNG), S3Override(), LOCAL, limits()) as content:
            name = folder.store(content, "3d", 10_000, lambda: None)
        files.append((name, (tmp_path / "input" / name).stat().st_mtime))

    assert files[0] == files[1]
    assert files[0][0].startswith("3d/")


def test_lock_of_a_failed_download_does_not_stay(tmp_path: Path) -> None:
    folder = InputFolder(tmp_path / "input", tmp_path / "locks")

    def fail() -> str:
        raise BadReference("gone")

    with pytest.raises(BadReference):
        folder.fetch("url", fail, lambda: None)
    assert list((tmp_path / "locks").iterdir()) == []
    assert folder.fetch("url", lambda: "name", lambda: None) == "name"


def test_downloads_end_with_their_job(server: Server, tmp_path: Path) -> None:
    began = threading.Event()

    def endless(call: BaseHTTPRequestHandler) -> None:
        call.send_response(200)
        call.end_headers()
        while True:
            call.wfile.write(b"x")
            began.set()
            time.sleep(0.01)

    server.answers["/endless.png"] = endless
    folder = tmp_path / "data" / "input"
    places = {"WORKER_DIR": f"{tmp_path}/worker", "COMFYUI_DATA_DIR": f"{tmp_path}/data"}
    settings = Settings.from_env({**places, "OUTBOUND_ALLOW": "127.0.0.1"})
    job = Job(caller=Caller(request_id="a"), workflow=load(server.url + "/endless.png"))
    with JobInputs(job, settings, Deadline(None, 0), lambda: None):
        assert began.wait(10)
        assert wait_until(lambda: any(folder.glob("*")))

    assert wait_until(lambda: not any(folder.glob("*")))


def test_waiting_for_another_download_ends_when_the_job_does(tmp_path: Path) -> None:
    folder = InputFolder(tmp_path / "input", tmp_path / "locks")
    release, began = threading.Event(), threading.Event()

    def store() -> str:
        began.set()
        release.wait(10)
        return "name"

    def cancelled() -> None:
        raise InterruptedError

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(folder.fetch, "url", store, lambda: None)
        assert began.wait(10)
        with pytest.raises(InterruptedError):
            folder.fetch("url", lambda: "other", cancelled)
        release.set()
        assert first.result(10) == "name"
    assert os.listdir(tmp_path) == ["locks"]
