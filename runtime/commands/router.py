"""`lambda-comfyui router`: gives the requests of a fleet's clients to its workers.

This module joins the command line and the settings; runtime/fleet/application.py has the routes.
"""

import argparse
import contextlib
import queue
import sys
import time
from typing import TYPE_CHECKING

from events.repeating_timer import RepeatingTimer
from handler.settings import Settings
from runtime.commands.listening import LOOPBACK, is_loopback, listen
from runtime.commands.options import override, port
from runtime.extras import require
from runtime.process.signals import get_beside_signals, on_stop_signal

if TYPE_CHECKING:
    from runtime.fleet.application import RouterContext
    from runtime.fleet.router import Router
    from runtime.fleet.scaler import Scaler
    from runtime.fleet.shared_demand import SharedDemand

_SWEEP_EVERY_S = 2.0
_SCALE_EVERY_S = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", metavar="ADDRESS", help="listen on this address (ROUTER_ADDRESS)")
    parser.add_argument(
        "--port", type=port, metavar="N", help="listen on this port; 0: any free one (ROUTER_PORT)"
    )


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Route until SIGTERM or SIGINT. Returns 0.

    Raises StartError, FleetStoreError, MachinesError.
    """
    require("uvicorn")
    require("cryptography")
    from runtime.fleet.access import Tokens  # noqa: PLC0415 - starlette
    from runtime.fleet.application import RouterContext, create_router_app  # noqa: PLC0415
    from runtime.fleet.route import Balance, RouteRules  # noqa: PLC0415
    from runtime.fleet.router import Router  # noqa: PLC0415
    from runtime.fleet.shared_demand import SharedDemand  # noqa: PLC0415
    from runtime.fleet.signature import Signer, new_key  # noqa: PLC0415
    from runtime.fleet.store import open_fleet_store  # noqa: PLC0415
    from runtime.lambda_host.http_front import HttpFront  # noqa: PLC0415 - uvicorn

    settings = override(settings, {"router_address": args.host, "router_port": args.port})
    address = settings.router_address
    if not settings.router_token and not is_loopback(address):
        _say(f"no ROUTER_TOKEN: listening on {LOOPBACK} instead of {address}")
        address = LOOPBACK
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen(address, settings.router_port, "--host, --port"))
        store = stack.enter_context(contextlib.closing(open_fleet_store(settings)))
        rules = RouteRules(Balance(settings.router_balance), settings.router_max_queue_s)
        router = Router(store, rules, on_event=_say)
        context = RouterContext(
            router=router,
            signer=Signer(store.secret("key", new_key)),
            tokens=Tokens(
                settings.router_token, settings.router_worker_token or settings.router_token
            ),
            endpoints=settings.router_endpoints,
            created_at=float(store.secret("created_at", lambda: str(time.time()))),
        )
        front = HttpFront(create_router_app(context), listener)
        demand = SharedDemand(store, router.waiting)
        stack.enter_context(RepeatingTimer(_SWEEP_EVERY_S, lambda: _sweep(router, demand)))
        if settings.scale_machines:
            scaler = _scaler(settings, context, demand)
            stack.enter_context(RepeatingTimer(_SCALE_EVERY_S, lambda: _scale(scaler)))
        stop: queue.SimpleQueue[int] = queue.SimpleQueue()
        with on_stop_signal(lambda _: stop.put(0)):
            front.start()
            stack.callback(front.stop)
            host, number = listener.getsockname()[:2]
            _say(f"routing on http://{host}:{number} for {', '.join(settings.router_endpoints)}")
            return get_beside_signals(stop)


def _sweep(router: "Router", demand: "SharedDemand") -> bool:
    # A store that does not answer now may do so the next time.
    try:
        router.refresh()
        router.sweep()
        demand.tell(time.time())
    except Exception as error:
        _say(f"the state of the fleet could not be read: {error}")
    return True


def _scaler(settings: Settings, context: "RouterContext", demand: "SharedDemand") -> "Scaler":
    from runtime.fleet.machines import machines_of  # noqa: PLC0415
    from runtime.fleet.scaler import Scaler  # noqa: PLC0415
    from runtime.fleet.scaling import ScalingRules  # noqa: PLC0415

    rules = ScalingRules(
        max_workers=settings.scale_max_workers,
        min_workers=settings.scale_min_workers,
        min_load=settings.scale_min_load,
        target_util=settings.scale_target_util,
        cold_mult=settings.scale_cold_mult,
        min_cold_load=settings.scale_min_cold_load,
        target_queue_s=settings.scale_target_queue_s,
        inactivity_timeout_s=settings.scale_inactivity_timeout_s,
    )
    machines = machines_of(settings.scale_machines)
    return Scaler(
        context.router, context.signer, rules, machines, demand=demand.total, on_state=_say
    )


def _scale(scaler: "Scaler") -> bool:
    # As for a sweep: the next look may work.
    try:
        scaler.scale()
    except Exception as error:
        _say(f"the fleet could not be scaled: {error}")
    return True


def _say(text: str) -> None:
    print(f"router: {text}", file=sys.stderr, flush=True)
