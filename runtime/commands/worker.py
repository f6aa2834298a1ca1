"""`lambda-comfyui worker`: owns ComfyUI until SIGTERM, or until no handler needs it.

Which process may own it is decided in runtime/worker/ownership.py.
"""

import argparse
import signal
import threading

from handler.settings import Settings
from runtime.errors import LambdaComfyUIError
from runtime.log import log
from runtime.process.signals import run_beside_signals
from runtime.worker.ownership import owned_worker


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--leased",
        action="store_true",
        help="stop when no handler is connected any more (set by handlers)",
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
    except LambdaComfyUIError as error:
        # The log file has it too, for the handler that has started this worker.
        log(str(error))
        return error.exit_status
    return 0
