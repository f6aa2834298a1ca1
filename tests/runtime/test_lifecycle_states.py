"""Whatever happens to a worker, in whatever order: its states move along the table, it wakes when
it can, and nothing of it is left.

Hypothesis makes up the order. The program that the worker owns is a fake, for a real ComfyUI takes
four seconds a start; everything else is real, processes and signals included.
"""

import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from handler.settings import PROJECT, Settings
from handler.worker_protocol import Depth, State, WorkerStatus
from runtime.hooks import Change, Hooks
from runtime.process import child
from runtime.worker import lifecycle, start_failures
from runtime.worker.comfyui_process import ComfyUIProcess
from runtime.worker.lifecycle import Worker
from runtime.worker.start_failures import MAX_IN_A_ROW
from runtime.worker.states import MOVES
from tests.processes import is_running, wait_until
from tests.worker import comfyui_pid

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# Longer than anything here may take: what is not over by then hangs.
PATIENCE_S = 60.0
FAKE = PROJECT / "tests" / "fakes" / "comfyui"


class Recorder(Hooks):
    """Keeps every change in order."""

    def __init__(self) -> None:
        self.changes: list[Change] = []

    def _note(self, change: Change) -> None:
        self.changes.append(change)

    on_starting = on_ready = on_inactive = on_draining = on_failed = on_stopped = _note


class WorkerMachine(RuleBasedStateMachine):
    """One worker, from its start to its end."""

    idle_stop_after_s: float | None = None

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="lc-states-"))
        self.recorder = Recorder()
        self.worker = Worker(
            Settings(
                comfyui_dir=FAKE,
                comfyui_python=Path(sys.executable),
                comfyui_args=("--cpu",),
                comfyui_port=0,
                comfyui_data_dir=self.folder,
                worker_dir_given=self.folder / "worker",
                idle_stop_after_s=self.idle_stop_after_s,
            ),
            [self.recorder],
        )
        self.jobs, self.is_broken = 0, False
        self.pids: set[int] = set()
        self.thread = threading.Thread(target=self.worker.supervise)
        self.thread.start()

    @rule()
    def wake(self) -> None:
        self.worker.begin_job()
        self.jobs += 1
        # Without a job it might fall asleep just after it was asked.
        before = self.worker.describe()

        self._within_patience(self.worker.wake)

        now = self._describe()
        if self.is_broken and before.state != State.READY:
            assert now.state in (State.INACTIVE, State.FAILED, State.STARTING, State.READY)
        elif now.state != State.FAILED:
            assert now.state == State.READY or self.is_broken
            assert is_running(comfyui_pid(now))

    @precondition(lambda self: not self.is_broken and not self.jobs)
    @rule(count=st.integers(2, 20))
    def wake_many_at_once(self, count: int) -> None:
        before = self._describe()

        self._all([self._begin_job] * count)

        now = self._describe()
        if before.state != State.FAILED:
            assert now.state == State.READY
            assert now.starts <= before.starts + 1
        assert now.jobs == count

    @precondition(lambda self: self.jobs)
    @rule()
    def end_a_job(self) -> None:
        self._end_job()

    @rule()
    def kill_comfyui(self) -> None:
        self._kill("comfyui_pid")

    @rule()
    def kill_the_prewarmed_process(self) -> None:
        self._kill("prewarmed_pid")

    @rule()
    def restart(self) -> None:
        self.worker.restart()

    @rule(depth=st.sampled_from([Depth.FREE, Depth.STOP, Depth.EXIT]))
    def sleep(self, depth: Depth) -> None:
        before = self._describe()

        slept = self._within_patience(lambda: self.worker.sleep(depth))

        assert slept is (self.jobs == 0)
        now = self._describe()
        if slept and depth >= Depth.STOP:
            assert now.state in (State.INACTIVE, State.FAILED)
            assert now.comfyui_pid is None
        if slept and depth is Depth.EXIT:
            assert now.prewarmed_pid is None
        if not slept and before.state == State.READY:
            assert now.state == State.READY

    @rule()
    def break_what_starts(self) -> None:
        (self.folder / "user").mkdir(exist_ok=True)
        (self.folder / "user" / "broken").touch()
        self.is_broken = True

    @precondition(lambda self: self.is_broken)
    @rule()
    def mend_what_starts(self) -> None:
        (self.folder / "user" / "broken").unlink()
        self.is_broken = False

    @precondition(lambda self: not self.is_broken)
    @rule(seed=st.integers(0, 2**16))
    def everything_at_once(self, seed: int) -> None:
        def job() -> None:
            self._begin_job()
            self._end_job()

        order = random.Random(seed)
        actions: list[Callable[[], object]] = [job] * 5
        actions += [self.kill_comfyui, self.kill_the_prewarmed_process, self.restart]
        actions += [lambda: self.worker.sleep(Depth.STOP), lambda: self.worker.sleep(Depth.EXIT)]

        self._all(order.sample(actions, len(actions)))

        if self.worker.state is not State.FAILED:
            self.wake()
            self.end_a_job()

    @precondition(lambda self: self.idle_stop_after_s and not self.jobs)
    @rule()
    def wait_until_idle(self) -> None:
        asleep = (State.INACTIVE, State.FAILED)
        assert wait_until(lambda: self.worker.state in asleep, PATIENCE_S)

    def teardown(self) -> None:
        if not hasattr(self, "worker"):
            return
        self.worker.stop()
        self.thread.join(PATIENCE_S)

        assert not self.thread.is_alive(), "the stop waits for one of its limits"
        assert self.worker.state is State.STOPPED
        assert wait_until(lambda: not any(is_running(pid) for pid in self.pids))
        self._check_changes()
        shutil.rmtree(self.folder)

    def _check_changes(self) -> None:
        state = State.STARTING
        for change in self.recorder.changes:
            assert change.old is state
            assert change.new in MOVES[change.old]
            state = change.new
        assert state is State.STOPPED

    def _begin_job(self) -> None:
        self.worker.begin_job()
        self.jobs += 1
        self._within_patience(self.worker.wake)

    def _end_job(self) -> None:
        self.worker.end_job()
        self.jobs -= 1

    def _describe(self) -> WorkerStatus:
        now = self.worker.describe()
        self.pids |= {pid for pid in (now.comfyui_pid, now.prewarmed_pid) if pid}
        assert now.jobs == self.jobs
        assert 0 <= self.worker._shared.restarts.failures.failed_starts_in_a_row <= MAX_IN_A_ROW
        return now

    def _kill(self, name: str) -> None:
        if pid := getattr(self.worker.describe(), name):
            self.pids.add(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            assert wait_until(lambda: getattr(self.worker.describe(), name) != pid, PATIENCE_S)

    def _all(self, actions: list[Callable[[], object]]) -> None:
        threads = [threading.Thread(target=action) for action in actions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert not any(thread.is_alive() for thread in threads)

    def _within_patience(self, action: Callable[[], Any]) -> Any:
        results: list[Any] = []
        thread = threading.Thread(target=lambda: results.append(action()), daemon=True)
        thread.start()
        thread.join(PATIENCE_S)
        assert results, "it hangs"
        return results[0]


class DozingWorkerMachine(WorkerMachine):
    """The same with an idle timer."""

    idle_stop_after_s = 0.2


@pytest.mark.parametrize("machine", [WorkerMachine, DozingWorkerMachine])
def test_states_move_along_the_table_in_any_sequence(
    machine: type[WorkerMachine], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Deaths and failures are many here, and their pauses would be most of the test.
    monkeypatch.setattr(start_failures, "_MAX_PAUSE_S", 0.05)
    # Lambda leaves two seconds for a stop. A stop that needed one of its limits would hang here.
    monkeypatch.setattr(ComfyUIProcess.stop, "__defaults__", (2 * PATIENCE_S,))
    monkeypatch.setattr(lifecycle, "_HOOKS_WITHIN_S", 2 * PATIENCE_S)
    monkeypatch.setattr(child, "_DRAIN_WITHIN_S", 2 * PATIENCE_S)
    case = machine.TestCase
    case.settings = settings(
        max_examples=12,
        stateful_step_count=15,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    case("runTest").runTest()
