"""`python -m runtime worker`: owns ComfyUI until SIGTERM, or until no handler needs it any more."""

import argparse
import signal
import threading

from handler.settings import Settings
from runtime.hooks import HookError
from runtime.log import log
from runtime.process.signals import run_beside_signals
from runtime.worker.control import ControlError, owned_worker


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--leased",
        action="store_true",
        help="stop when no handler is connected any more (handlers start it so)",
    )


def run(args: argparse.Namespace, settings: Settings) -> int:
    """0 at the end, and at once when another process owns ComfyUI; 2 for wrong settings."""
    try:
        with owned_worker(settings, is_leased=args.leased) as worker:
            if worker is None:
                return 0
            for number in (signal.SIGTERM, signal.SIGINT):
                # Not in the handler itself: the main thread may hold the lock that `stop` needs.
                signal.signal(
                    number,
                    lambda *_: threading.Thread(
                        target=worker.stop, args=(settings.shutdown_grace_s,)
                    ).start(),
                )
            run_beside_signals(worker.supervise)
    except (ControlError, HookError) as error:
        log(str(error))
        return 2
    return 0
