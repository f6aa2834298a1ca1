"""Carries out what `scaling` decides: asks workers to wake and to sleep, has machines started.

One router of a fleet scales it.
"""

import time
from collections.abc import Callable
from dataclasses import asdict

import requests

from runtime.fleet.machines import Machines, MachinesError
from runtime.fleet.registry import Worker
from runtime.fleet.router import Clock, Router
from runtime.fleet.scaling import Demand, Plan, ScalerState, ScalingRules, plan
from runtime.fleet.signature import Command, Signer
from runtime.fleet.worker_commands import SLEEP, WAKE

_COMMAND_S = 60.0
_TIMEOUT_S = 5.0
_TAKEN = 202
# A machine that has not reported by then does not come.
_START_WITHIN_S = 900.0
# After a start that failed: it may have started some of them.
_START_AGAIN_S = 60.0


class Scaler:
    """Scales the fleet of `router`. Without `machines`, workers only wake and sleep.

    `demand` says what the clients of all routers ask for. `on_state` gets a sentence for everything
    that it does, and for what failed.
    """

    def __init__(
        self,
        router: Router,
        signer: Signer,
        rules: ScalingRules,
        machines: Machines | None,
        *,
        demand: Callable[[float], Demand],
        on_state: Callable[[str], object],
        clock: Clock = time.time,
    ) -> None:
        self._router, self._signer, self._rules, self._machines = router, signer, rules, machines
        self._demand, self._on_state, self._clock = demand, on_state, clock
        self._state = ScalerState()
        # Until when machines are expected that were started and have not reported yet.
        self._starting: list[float] = []
        self._known = {worker.id for worker in router.workers()}

    def scale(self) -> None:
        """One look at the fleet."""
        now = self._clock()
        if not self._router.is_settled:
            return
        workers = {worker.id: worker for worker in self._router.workers()}
        self._forget_started(set(workers), now)
        made, self._state = plan(
            self._rules,
            [worker for worker in workers.values() if not worker.is_silent(now)],
            self._demand(now),
            self._state,
            now,
            starting=len(self._starting),
        )
        self._carry_out(made, workers, now)

    def _carry_out(self, made: Plan, workers: dict[int, Worker], now: float) -> None:
        for worker_id in made.wake:
            self._command(workers[worker_id], WAKE, now)
        for worker_id in made.sleep:
            self._command(workers[worker_id], SLEEP, now)
        if self._machines is None:
            return
        try:
            if made.start:
                self._on_state(f"scaling: {made.start} more machines are needed")
                self._start(made.start, now)
            for worker_id in made.stop:
                # Not if it was given a request meanwhile.
                if retired := self._router.retire(worker_id):
                    self._on_state(f"scaling: the machine of {retired.url} is not needed")
                    self._machines.stop(retired)
        except MachinesError as error:
            self._on_state(f"scaling: {error}")

    def _start(self, count: int, now: float) -> None:
        """Raises MachinesError."""
        assert self._machines is not None
        within_s = _START_AGAIN_S
        try:
            self._machines.start(count)
            within_s = _START_WITHIN_S
        finally:
            self._starting += [now + within_s] * count

    def _command(self, worker: Worker, action: str, now: float) -> None:
        command = Command(worker.url, action, now + _COMMAND_S)
        body = {**asdict(command), "signature": self._signer.sign(command)}
        try:
            # The worker has named its own address; it cannot lead the router to another one.
            answer = requests.post(
                f"{worker.url}/fleet/command", json=body, timeout=_TIMEOUT_S, allow_redirects=False
            )
            problem = "" if answer.status_code == _TAKEN else f": status {answer.status_code}"
        except requests.RequestException as error:
            problem = f": {type(error).__name__}"
        self._on_state(f"scaling: {action} {worker.url}{problem}")

    def _forget_started(self, worker_ids: set[int], now: float) -> None:
        """A machine that has reported, or takes too long, does not start any more."""
        joined = len(worker_ids - self._known)
        self._known = worker_ids
        self._starting = [until for until in self._starting[joined:] if until > now]
