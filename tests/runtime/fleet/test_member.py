"""What a worker in a fleet accepts and reports: the real router and front, without ComfyUI."""

import base64
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import requests
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from handler.api.dispatcher import WorkerReport
from handler.settings import Settings
from handler.worker_protocol import State
from runtime.fleet.access import Tokens
from runtime.fleet.application import RouterContext, create_router_app
from runtime.fleet.member import Member, RouterAddress
from runtime.fleet.member_front import COMMAND_PATH, MemberFront
from runtime.fleet.registry import Worker
from runtime.fleet.route import RouteRules
from runtime.fleet.router import Request, Router
from runtime.fleet.signature import Grant, Signer, new_key
from runtime.fleet.store import open_fleet_store
from runtime.fleet.used_grants import UsedGrants
from runtime.lambda_host.http_front import HttpFront
from tests.processes import wait_until

pytestmark = pytest.mark.slow

URL = "http://worker"
TOKEN = "of-workers"
SIGNER = Signer(new_key())


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    front = HttpFront(app, listener)
    front.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    front.stop()


@pytest.fixture
def router(tmp_path: Path) -> Iterator[Router]:
    with closing(open_fleet_store(Settings(jobs_db=tmp_path / "fleet.sqlite"))) as store:
        yield Router(store, RouteRules())


def router_app(router: Router) -> ASGIApp:
    return create_router_app(
        RouterContext(router, SIGNER, Tokens("of-callers", TOKEN), ("comfyui",), 0.0)
    )


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def member(router: Router, said: list[str]) -> Iterator[Member]:
    with served(router_app(router)) as url:
        made = member_of(url, said)
        made.start()
        assert wait_until(lambda: len(router.workers()) == 1)
        yield made
        made.stop()


def member_of(
    url: str,
    said: list[str],
    worker_report: Callable[[], WorkerReport] = lambda: WorkerReport(state=State.READY),
) -> Member:
    return Member(
        RouterAddress(url, TOKEN),
        URL,
        worker_report=worker_report,
        is_over=lambda _: True,
        on_state=said.append,
    )


@contextmanager
def silent_router() -> Iterator[tuple[socket.socket, str]]:
    """One that takes connections and does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener, f"http://127.0.0.1:{listener.getsockname()[1]}"


def is_asked(router: socket.socket) -> bool:
    try:
        connection, _ = router.accept()
    except BlockingIOError:
        return False
    connection.close()
    return True


async def answer_200(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


async def cut_off(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 202, "headers": []})
    raise ClientDisconnect


@pytest.fixture
def grants_file(tmp_path: Path) -> Path:
    return tmp_path / "worker" / "grants.sqlite"


@contextmanager
def front_of(member: Member, grants_file: Path, app: ASGIApp = answer_200) -> Iterator[str]:
    used = UsedGrants(grants_file)
    front = MemberFront(member, app, answer_200, used_grants=used, max_body_bytes=1024 * 1024)
    with served(front) as url:
        yield url


@pytest.fixture
def front(member: Member, grants_file: Path) -> Iterator[str]:
    with front_of(member, grants_file) as url:
        yield url


def envelope(expires_in_s: float = 60.0) -> dict[str, Any]:
    grant = Grant(URL, "comfyui", 100.0, 1, 1, time.time() + expires_in_s)
    return {"auth_data": {**asdict(grant), "grant": SIGNER.sign(grant)}, "payload": {}}


def post(url: str, body: Any) -> requests.Response:
    return requests.post(url, json=body, timeout=30)


def only_worker(router: Router) -> Worker:
    (worker,) = router.workers()
    return worker


def test_grant_is_used_once_however_its_signature_is_written(front: str) -> None:
    body = envelope()
    signature = body["auth_data"]["grant"]
    # The last four bits of 256 bytes in Base64 mean nothing.
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    other = signature[:-3] + letters[letters.index(signature[-3]) + 1] + "=="
    assert base64.b64decode(other, validate=True) == base64.b64decode(signature, validate=True)

    first = post(f"{front}/generate/sync", body)
    body["auth_data"]["grant"] = other
    again = post(f"{front}/generate/sync", body)

    assert first.status_code == 200
    assert again.status_code == 401
    assert again.json()["message"] == "auth_data: it was used before; ask the router again"


def test_grant_that_comes_many_times_at_once_is_used_once(front: str) -> None:
    body = envelope()

    with ThreadPoolExecutor(8) as threads:
        calls = [threads.submit(post, f"{front}/generate", body) for _ in range(16)]
        statuses = [call.result().status_code for call in calls]

    assert sorted(statuses) == [200] + [401] * 15


def test_grant_that_cannot_be_noted_as_used_runs_nothing(front: str, grants_file: Path) -> None:
    grants_file.write_bytes(b"no database, and longer than the header of one is" * 10)

    answer = post(f"{front}/generate/sync", envelope())

    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert "cannot note what it has run" in answer.json()["message"]


def test_grants_are_forgotten_after_their_time(tmp_path: Path) -> None:
    used = UsedGrants(tmp_path / "grants.sqlite")
    early, late = (Grant(URL, "comfyui", 100.0, 1, 1, expires) for expires in (10.0, 20.0))

    assert used.use(early, now=5.0)
    assert used.use(late, now=15.0)
    with closing(sqlite3.connect(tmp_path / "grants.sqlite")) as db:
        assert db.execute("SELECT expires FROM used_grants").fetchall() == [(20.0,)]


def test_grant_that_has_expired_names_the_clocks(front: str) -> None:
    answer = post(f"{front}/generate/sync", envelope(expires_in_s=-1.0))

    assert answer.status_code == 401
    assert "compare its clock with this worker's" in answer.json()["message"]


@pytest.mark.parametrize("expires", [10**400, "soon", None, [1]])
def test_command_with_a_time_that_is_none_is_refused(front: str, expires: Any) -> None:
    body = {"url": URL, "action": "sleep", "expires": expires, "signature": "bm8="}

    assert post(front + COMMAND_PATH, body).status_code == 400


def test_large_command_is_not_read(front: str) -> None:
    answer = requests.post(front + COMMAND_PATH, data=b" " * 100_000, timeout=30)

    assert answer.status_code == 413


def test_request_whose_answer_was_cut_off_is_not_held_for_ever(
    member: Member, grants_file: Path
) -> None:
    with front_of(member, grants_file, cut_off) as url:
        with pytest.raises(requests.RequestException):
            post(f"{url}/generate", envelope())

        assert wait_until(lambda: not member.is_busy)


def test_request_that_comes_again_before_its_end_ends_once(router: Router, member: Member) -> None:
    request_idx = router.route(Request("comfyui", 100.0)).request_idx
    first, second = member.begin(request_idx, 100.0), member.begin(request_idx, 100.0)
    assert wait_until(lambda: only_worker(router).measured.cur_load == 200.0)

    member.end(first, success=False)
    assert wait_until(lambda: only_worker(router).measured.cur_load == 100.0)
    assert [held.request_idx for held in only_worker(router).held] == [request_idx]
    member.end(second, success=True)
    assert wait_until(lambda: only_worker(router).held == ())
    assert only_worker(router).work == 100.0


def test_strangers_do_not_make_a_worker_ask_for_a_key(grants_file: Path) -> None:
    with (
        silent_router() as (router, router_url),
        front_of(member_of(router_url, []), grants_file) as url,
    ):
        answer = post(f"{url}/generate", envelope())

        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert "no key of its router yet" in answer.json()["message"]
        assert not is_asked(router)


def test_reports_go_on_after_one_that_could_not_be_made(router: Router, said: list[str]) -> None:
    failures = [ValueError("half an answer")]

    def worker_report() -> WorkerReport:
        if failures:
            raise failures.pop()
        return WorkerReport(state=State.READY)

    with served(router_app(router)) as url:
        member = member_of(url, said, worker_report)
        member.start()
        assert wait_until(lambda: len(router.workers()) == 1)
        member.stop()

    assert said[0] == "no report to the router: ValueError: half an answer"


def test_drain_does_not_wait_for_the_router() -> None:
    with silent_router() as (router, url):
        member_of(url, []).drain()

        assert not is_asked(router)
