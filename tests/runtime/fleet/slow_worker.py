"""A worker of a fleet that sleeps instead of running ComfyUI: 100 ÷ score seconds a request.

What the router and clients meet is the real front and the real reports of `serve`.
Run: python -m tests.runtime.fleet.slow_worker ROUTER_URL SCORE PORT
"""

import asyncio
import json
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from handler.api.dispatcher import WorkerReport
from handler.worker_protocol import State
from runtime.fleet.member import Member, RouterAddress
from runtime.fleet.member_front import MemberFront
from runtime.fleet.used_grants import UsedGrants
from runtime.lambda_host.http_front import HttpFront

TOKEN = "of-workers"


def main(router_url: str, score: float, port: int) -> None:
    is_ours = asyncio.Lock()

    async def generate(request: Request) -> Response:
        job = json.loads(await request.body())["payload"]["input"]
        async with is_ours:
            await asyncio.sleep(100 / score)
        return JSONResponse({"id": job["request_id"], "status": "completed", "worker": score})

    app = Starlette(routes=[Route("/generate/sync", generate, methods=["POST"])])
    listener = socket.create_server(("127.0.0.1", port))
    member = Member(
        RouterAddress(router_url, TOKEN),
        f"http://127.0.0.1:{listener.getsockname()[1]}",
        worker_report=lambda: WorkerReport(state=State.READY),
        is_over=lambda _: True,
        on_state=lambda text: print(text, flush=True),
        score_of=lambda _: score,
    )
    folder = tempfile.TemporaryDirectory()
    used_grants = UsedGrants(Path(folder.name) / "grants.sqlite")
    front = HttpFront(
        MemberFront(member, app, app, used_grants=used_grants, max_body_bytes=1024 * 1024), listener
    )
    front.start()
    member.start()
    print("ready", flush=True)
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    while not stopped.wait(0.2):
        pass
    member.drain()
    while member.is_busy:
        stopped.clear()
        stopped.wait(0.1)
    member.stop()
    front.stop()
    folder.cleanup()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
