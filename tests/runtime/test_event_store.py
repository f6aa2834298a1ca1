"""The files of accepted events, with several hosts in one folder."""

import subprocess
import sys
from contextlib import closing
from pathlib import Path

from handler.settings import PROJECT
from runtime.lambda_host.event_store import EventStore


def test_events_are_there_after_the_end_of_the_host_in_their_order(tmp_path: Path) -> None:
    with closing(EventStore(tmp_path)) as store:
        for number in range(3):
            store.put(f"event-{number}", b"{}", is_job=number == 1)

    with closing(EventStore(tmp_path)) as store:
        assert [store.position(f"event-{number}") for number in range(3)] == [0, 1, 2]
        first = store.next(())
        assert first
        second = store.next({first.number})
        assert second
        assert [(event.id, event.is_job) for event in (first, second)] == [
            ("event-0", False),
            ("event-1", True),
        ]


def test_two_hosts_share_no_event(tmp_path: Path) -> None:
    with closing(EventStore(tmp_path)) as first, closing(EventStore(tmp_path)) as second:
        first.put("of the first", b"{}", is_job=True)

        assert (first.is_alone, second.is_alone) == (True, False)
        assert first.path != second.path
        assert second.next(()) is None


def test_host_takes_over_the_events_of_hosts_that_have_ended(tmp_path: Path) -> None:
    with closing(EventStore(tmp_path)) as first:
        with closing(EventStore(tmp_path)) as second:
            second.put("of the second", b"body", is_job=True)
        first.put("of the first", b"{}", is_job=True)

    with closing(EventStore(tmp_path)) as host:
        assert host.is_alone
        assert [host.position("of the first"), host.position("of the second")] == [0, 1]
    # None is in two files afterwards.
    with closing(EventStore(tmp_path)) as first, closing(EventStore(tmp_path)) as second:
        assert (first.count(), second.count()) == (2, 0)


def test_lock_of_a_killed_host_is_free_and_its_events_are_there(tmp_path: Path) -> None:
    # A child of the host lives on, as a handler may.
    code = (
        "import os, pathlib, subprocess, sys\n"
        "from runtime.lambda_host.event_store import EventStore\n"
        "EventStore(pathlib.Path(sys.argv[1])).put('left', b'{}', is_job=True)\n"
        "subprocess.Popen(['sleep', '5'], stdout=subprocess.DEVNULL)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=PROJECT, check=False)

    with closing(EventStore(tmp_path)) as store:
        assert store.is_alone
        assert store.path.name == "events.sqlite"
        assert store.position("left") == 0
