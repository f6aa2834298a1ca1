"""A handler that does what its event says, for the tests of the host: alone or in an SQS batch."""

import os
import signal
import time
from pathlib import Path
from typing import Any


def acts(event: Any, context: Any) -> Any:
    """Runs one action, or one for each record; a record whose action is `fail` goes back."""
    if "Records" not in event:
        return act(event, context)
    import json  # noqa: PLC0415 - as the body of a message only

    failed = []
    for record in event["Records"]:
        action = json.loads(record["body"])
        if "keep" in action:
            Path(action["keep"]).write_text(json.dumps(event))
        if "keep_client_context" in action:
            custom = context.client_context.custom
            Path(action["keep_client_context"]).write_text(json.dumps(custom))
        if act(action, context) == "fail":
            failed.append({"itemIdentifier": record["messageId"]})
    return {"batchItemFailures": failed}


def act(action: Any, context: Any) -> Any:
    """`marks` is a folder: a file for each beginning and each end, with process id and time.

    With `until` it does not end before a file of that name is there.
    """
    mark(action, "begin")
    if "together" in action:
        wait_for_company(Path(action["marks"]), action["together"])
    while "until" in action and not Path(action["until"]).exists():
        time.sleep(0.01)
    time.sleep(action.get("seconds", 0))
    match action.get("do"):
        case "raise":
            raise ValueError("told to")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "talk":
            print("said by", action["name"])
        case "tell context":
            return {"client": context.client_context.custom, "arn": context.function_name}
        case "be large":
            return "x" * 7_000_000
    mark(action, "end")
    return action.get("do")


def wait_for_company(folder: Path, count: int) -> None:
    give_up = time.monotonic() + 30
    while len(list(folder.glob("*.begin"))) < count:
        if time.monotonic() > give_up:
            raise TimeoutError("the other events have not begun")
        time.sleep(0.01)


def mark(action: Any, what: str) -> None:
    if "marks" in action:
        path = Path(action["marks"]) / f"{action['name']}.{what}"
        before = path.read_text() if path.exists() else ""
        # A test reads the file as soon as it exists: it must appear with its content.
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text(f"{before}{os.getpid()} {time.time()}\n")
        partial.rename(path)
