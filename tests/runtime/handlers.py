"""Handlers that the host's tests run in AWS's runtime client; each is named for what it does."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any


def echoes(event: Any, context: Any) -> dict[str, Any]:
    return {
        "event": event,
        "request_id": context.aws_request_id,
        "remaining_ms": context.get_remaining_time_in_millis(),
        "arn": context.invoked_function_arn,
        "environ": dict(os.environ),
        "folder": os.getcwd(),
        "pid": os.getpid(),
    }


def raises(event: Any, context: Any) -> None:
    raise ValueError("no such thing")


def exits(event: Any, context: Any) -> None:
    if event == "exit":
        os._exit(3)


def is_killed(event: Any, context: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleeps(event: Any, context: Any) -> int:
    """Starts a child, tells both process ids in the file that the event names, and hangs."""
    with subprocess.Popen(["sleep", "60"]) as child:
        partial = Path(event["pids"] + ".partial")
        partial.write_text(f"{os.getpid()} {child.pid}")
        partial.rename(event["pids"])
        time.sleep(event["seconds"])
        child.kill()
    return os.getpid()


def is_too_large(event: int, context: Any) -> str:
    return "x" * event


def answers(event: Any, context: Any) -> Any:
    print("a line that is not for stdout")
    return event


def leaves(event: Any, context: Any) -> int:
    """Starts a process in a session of its own, which outlives it and keeps its output open."""
    subprocess.Popen(["sleep", "5"], start_new_session=True)
    return os.getpid()
