"""The rolling update of a fleet: a real router, and workers that a command restarts."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from events.repeating_timer import RepeatingTimer
from handler.settings import PROJECT
from runtime.commands.update_workers import in_order
from tests.processes import free_ports, wait_until
from tests.runtime.fleet.fleet import CALLERS, SLOW_WORKER, WORKERS, RouterProcess, router_process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

# As systemd does for a service with Restart=always.
SUPERVISOR = 'while :; do "$1" -m "$2" "$3" 100 "$4" & echo $! > "$5/$4.pid"; wait $!; done'
# As `systemctl restart` does: it returns when the old process has ended.
RESTART = """\
pid=$(cat "$1/${2##*:}.pid")
echo "$2" >> "$1/restarted"
kill "$pid"
while kill -0 "$pid" 2> /dev/null; do sleep 0.1; done
"""


def update(
    router: RouterProcess, command: str, *options: str, **variables: str
) -> "subprocess.Popen[str]":
    environ = {"ROUTER_URL": router.url, "ROUTER_TOKEN": CALLERS, **variables}
    return subprocess.Popen(
        [sys.executable, "-m", "runtime", "update-workers", command, *options],
        cwd=PROJECT,
        env=os.environ | environ,
        stderr=subprocess.PIPE,
        text=True,
    )


def last_line(process: "subprocess.Popen[str]", code: int) -> str:
    """What an update prints last that ends with this status."""
    _, log = process.communicate(timeout=100)
    assert process.returncode == code, log
    return log.splitlines()[-1]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[RouterProcess]:
    """The router of two workers that a supervisor starts again."""
    (tmp_path / "restart.sh").write_text(RESTART)
    with router_process(tmp_path) as router:
        supervisors = [
            subprocess.Popen(
                [
                    *("bash", "-c", SUPERVISOR, "-", sys.executable, SLOW_WORKER),
                    *(router.url, str(port), str(tmp_path)),
                ],
                cwd=PROJECT,
                start_new_session=True,
            )
            for port in free_ports(2)
        ]
        try:
            assert wait_until(lambda: router.statuses() == ["ready", "ready"], 60), router.log
            yield router
        finally:
            for supervisor in supervisors:
                with suppress(ProcessLookupError):
                    os.killpg(supervisor.pid, signal.SIGKILL)
                supervisor.wait(30)


def test_workers_are_restarted_one_after_another(fleet: RouterProcess, tmp_path: Path) -> None:
    before = {each["url"]: each for each in fleet.fleet()["workers"]}

    process = update(fleet, f"bash {tmp_path}/restart.sh {tmp_path}")
    usable = []
    while process.poll() is None:
        usable.append(fleet.statuses().count("ready"))

    assert last_line(process, 0) == "2 workers are back"
    # One was always there for the clients.
    assert min(usable) >= 1
    restarted = (tmp_path / "restarted").read_text().splitlines()
    assert sorted(restarted) == sorted(before)
    for each in fleet.fleet()["workers"]:
        assert each["status"] == "ready"
        assert each["loaded_at"] > before[each["url"]]["loaded_at"]


def test_update_ends_with_the_first_worker_that_fails(fleet: RouterProcess) -> None:
    last = last_line(update(fleet, "false"), 1)

    assert last.startswith("false http://127.0.0.1:")
    assert last.endswith(" stays drained")
    assert fleet.statuses() == ["draining", "ready"]
    assert "No such file" in last_line(update(fleet, "/no/such/command"), 1)
    # It can be called again.
    assert last_line(update(fleet, "true"), 0) == "2 workers are back"
    assert fleet.statuses() == ["ready", "ready"]


def test_worker_with_requests_is_not_restarted_and_one_that_stays_away_is_named(
    tmp_path: Path,
) -> None:
    with router_process(tmp_path) as router:
        working: list[int] = []

        def report(**fields: Any) -> bool:
            body = {"id": 1, "mtoken": WORKERS, "url": "http://worker", "max_perf": 1.0}
            return router.post(
                "/worker_status/", body | {"working_request_idxs": working, **fields}
            ).ok

        assert report()
        working.append(router.route()["request_idx"])
        with RepeatingTimer(5.0, report):
            last = last_line(update(router, "true", "--within", "1"), 1)
        assert last == "http://worker still has requests after 1 s; it stays drained"

        assert report(state="stopped")
        working.clear()
        assert report(state="starting")
        last = last_line(update(router, "true", "--within", "1"), 1)
        assert last in [
            f"http://worker is {status} 1 s after its restart"
            for status in ("starting", "draining")
        ]


def test_wrong_router_and_token_are_named(tmp_path: Path) -> None:
    with router_process(tmp_path) as router:
        unset = update(router, "true", ROUTER_URL="")
        nowhere = update(router, "true", ROUTER_URL="http://127.0.0.1:1")
        refused = update(router, "true", ROUTER_TOKEN="wrong")

        assert last_line(unset, 1).startswith("ROUTER_URL is not set")
        assert last_line(nowhere, 1).startswith("the router at http://127.0.0.1:1 does not answer")
        reason = last_line(refused, 1)
        assert "refuses /workers: status 401" in reason
        assert "needs ROUTER_TOKEN" in reason


def test_sleeping_workers_come_first_and_lost_ones_not_at_all() -> None:
    statuses = ["ready", "lost", "inactive", "failed", "inactive"]
    workers = [{"id": number, "status": status} for number, status in enumerate(statuses)]

    assert [each["id"] for each in in_order(workers)] == [2, 4, 0, 3]
