"""A worker's side of the fleet: what `serve` tells the router, and what it knows of it.

Reports are those of PyWorker (`vastai` 1.9.1): within a second after a change, else every 10
seconds. Requests that have ended are reported at once, and again until the router has taken them.
"""

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import requests

from handler.api.dispatcher import WorkerReport
from handler.worker_protocol import State
from runtime.fleet.protocol import STOPPED
from runtime.fleet.score import score_of, usable_workers
from runtime.fleet.signature import Verifier

_TICK_S = 1.0
# As often as that at most, however many requests end.
_PAUSE_S = 0.1
_REPORT_EVERY_S = 10.0
_TIMEOUT_S = 5.0
# For how long a router with a new key can be asked for it once only.
_KEY_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class RouterAddress:
    """Where the router is, and the token of its workers."""

    url: str
    token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """A request that a client has come with. It may come twice: each is a work of its own."""

    request_idx: int
    cost: float
    began: float


@dataclass(frozen=True, slots=True)
class Ended:
    """A request that has ended. `success`: it was worked off, and is not to be routed again."""

    request_idx: int
    success: bool
    began: float
    ended: float


def worker_id_of(public_url: str) -> int:
    """The number of the worker at this address, the same after a restart."""
    return int.from_bytes(hashlib.sha256(public_url.encode()).digest()[:6], "big")


class Member:
    """Reports to the router between `start` and `stop`.

    `worker_report` says how the host's workers are. `is_over` says whether the job with this
    id has ended. `on_state` gets a sentence when the router stops answering, and when it
    answers again.
    """

    def __init__(
        self,
        router: RouterAddress,
        public_url: str,
        *,
        worker_report: Callable[[], WorkerReport],
        is_over: Callable[[str], bool],
        on_state: Callable[[str], object],
        score_of: Callable[[WorkerReport], float] = score_of,
    ) -> None:
        self.public_url = public_url
        self._router, self._id = router, worker_id_of(public_url)
        self._worker_report, self._is_over, self._on_state = worker_report, is_over, on_state
        self._score_of = score_of
        self._session = requests.Session()
        self._lock, self._tick_lock = threading.Lock(), threading.Lock()
        self._working: set[Work] = set()
        self._accepted: dict[Work, str] = {}
        self._ended: list[Ended] = []
        self._is_draining = False
        self._reported: dict[str, Any] = {}
        self._reported_at = 0.0
        self._is_reachable = True
        self._verifier: Verifier | None = None
        self._key_at = 0.0
        self._has_news, self._has_left = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="fleet-member", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def drain(self) -> None:
        """Have the router send nothing more, at once. Does not wait for its answer."""
        self._is_draining = True
        self._has_news.set()

    def stop(self) -> None:
        """Leave the fleet."""
        self._has_left = True
        self._has_news.set()
        self._thread.join(_TIMEOUT_S)
        # A router that does not answer learns of the end by the silence; it would hold up the stop.
        if self._is_reachable:
            self._tick()
            self._post("/worker_status/", {**self._status(), "state": STOPPED})
        self._session.close()

    @property
    def is_busy(self) -> bool:
        """Whether a request of the router has no answer yet."""
        return bool(self._working)

    def begin(self, request_idx: int, cost: float) -> Work:
        """A client has come with a request that the router has sent."""
        work = Work(request_idx, cost, time.time())
        with self._lock:
            self._working.add(work)
        return work

    def end(self, work: Work, *, success: bool) -> None:
        """The request has its answer."""
        with self._lock:
            self._working.discard(work)
            self._accepted.pop(work, None)
            # The client may have come again meanwhile: then the request has not ended.
            if all(other.request_idx != work.request_idx for other in self._working):
                self._ended.append(Ended(work.request_idx, success, work.began, time.time()))
        self._has_news.set()

    def accept(self, work: Work, job_id: str) -> None:
        """The client has its answer, and the request goes on as this job."""
        with self._lock:
            self._accepted[work] = job_id

    def verifier(self, *, is_renewed: bool = False) -> Verifier | None:
        """The router's key; None as long as it has not answered the thread of the reports.

        `is_renewed` asks the router again, if it was not asked lately.
        """
        if is_renewed and time.monotonic() - self._key_at > _KEY_EVERY_S:
            self._fetch_key()
        return self._verifier

    def _run(self) -> None:
        while not self._has_left:
            try:
                self._tick()
            except Exception as error:
                # A worker whose reports stop gets no requests any more.
                if self._is_reachable:
                    self._on_state(f"no report to the router: {type(error).__name__}: {error}")
                self._is_reachable = False
            self._has_news.wait(_TICK_S)
            self._has_news.clear()
            time.sleep(_PAUSE_S)

    def _tick(self) -> None:
        with self._tick_lock:
            self._end_accepted()
            if self._verifier is None:
                self._fetch_key()
            self._send_ended()
            status = self._status()
            silent_s = time.monotonic() - self._reported_at
            is_due = silent_s >= _REPORT_EVERY_S or self._is_draining
            is_news = status != self._reported and silent_s >= _TICK_S / 2
            if (is_due or is_news) and self._post("/worker_status/", status):
                self._reported, self._reported_at = status, time.monotonic()

    def _end_accepted(self) -> None:
        with self._lock:
            accepted = list(self._accepted.items())
        for work, job_id in accepted:
            if self._is_over(job_id):
                self.end(work, success=True)

    def _send_ended(self) -> None:
        with self._lock:
            ended = list(self._ended)
        if not ended:
            return
        sent = self._post("/delete_requests/", {"worker_id": self._id, "requests": _items(ended)})
        if sent:
            with self._lock:
                del self._ended[: len(ended)]

    def _status(self) -> dict[str, Any]:
        worker = self._worker_report()
        # A worker that does not answer has not begun yet.
        state = State.STARTING if worker.state is State.STOPPED else worker.state
        workers = usable_workers(worker)
        with self._lock:
            working = list(self._working)
        return {
            "id": self._id,
            "url": self.public_url,
            "state": State.DRAINING.value if self._is_draining else state.value,
            "max_perf": self._score_of(worker),
            "places": len(workers),
            "benchmarks": [
                {
                    "gpu": each.benchmark.gpu,
                    "workflow_hash": each.benchmark.workflow_hash,
                    "score": each.benchmark.score,
                }
                for each in workers
                if each.benchmark
            ],
            "cold_start_s": worker.cold_start_ms / 1000,
            "error_msg": worker.failure if state is State.FAILED else "",
            "cur_load": sum(work.cost for work in working),
            "num_requests_working": len(working),
            "working_request_idxs": sorted({work.request_idx for work in working}),
        }

    def _post(self, path: str, body: dict[str, Any]) -> bool:
        address = self._router.url + path
        try:
            answer = self._session.post(
                address, json={**body, "mtoken": self._router.token}, timeout=_TIMEOUT_S
            )
            problem = "" if answer.ok else f"status {answer.status_code}: {answer.text[:200]}"
        except requests.RequestException as error:
            problem = type(error).__name__
        if problem and self._is_reachable:
            self._on_state(f"the router at {self._router.url} takes no report ({problem})")
        if not problem and not self._is_reachable:
            self._on_state(f"the router at {self._router.url} takes reports again")
        self._is_reachable = not problem
        return not problem

    def _fetch_key(self) -> None:
        self._key_at = time.monotonic()
        try:
            answer = requests.get(f"{self._router.url}/pubkey/", timeout=_TIMEOUT_S)
            answer.raise_for_status()
            self._verifier = Verifier(answer.text)
        except (requests.RequestException, ValueError) as error:
            if self._is_reachable:
                text = f"the router at {self._router.url} gives no key ({type(error).__name__})"
                self._on_state(text)
            self._is_reachable = False


def _items(ended: list[Ended]) -> list[dict[str, Any]]:
    return [
        {
            "request_idx": each.request_idx,
            "success": each.success,
            "status": "Success" if each.success else "Error",
            "entered_queue_at": each.began,
            "work_started_at": each.began,
            "work_completed_at": each.ended,
        }
        for each in ended
    ]
