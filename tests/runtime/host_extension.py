"""A real external extension for the tests: `python host_extension.py FILE BEHAVIOUR`.

Writes a line to FILE for everything that happens to it.
"""

import http.client
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

FILE, BEHAVIOUR = Path(sys.argv[1]), sys.argv[2]
API = "/2020-01-01/extension"


def note(*words: object) -> None:
    with FILE.open("a") as file:
        print(*words, file=file)


def call(method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, Any]:
    connection = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, API + path, json.dumps(body), given)
    answer = connection.getresponse()
    text = answer.read()
    return answer.status, json.loads(text) if text else None, answer.headers


def main() -> None:
    note("started", os.getpid())
    if BEHAVIOUR == "hangs before it registers":
        time.sleep(60)
    events = ["INVOKE", "SHUTDOWN"] if BEHAVIOUR == "wants INVOKE" else ["SHUTDOWN"]
    status, body, headers = call(
        "POST", "/register", {"events": events}, Lambda_Extension_Name="test"
    )
    note("registered", status, json.dumps(body))
    identifier = headers["Lambda-Extension-Identifier"] or ""
    if BEHAVIOUR == "wants INVOKE":
        sys.exit(1)
    if BEHAVIOUR == "reports an init error":
        error = {"Lambda_Extension_Function_Error_Type": "Extension.NoGpu"}
        call("POST", "/init/error", {}, Lambda_Extension_Identifier=identifier, **error)
        sys.exit(1)
    if BEHAVIOUR == "finds its machine unfit":
        error = {"Lambda_Extension_Function_Error_Type": "Worker.Unfit"}
        reason = {"errorMessage": "the disk is full", "errorType": "Worker.Unfit"}
        call("POST", "/exit/error", reason, Lambda_Extension_Identifier=identifier, **error)
        sys.exit(1)
    if BEHAVIOUR == "takes a while":
        time.sleep(0.7)
    if BEHAVIOUR == "ignores SIGTERM":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note("ready", time.time())
    status, event, _ = call("GET", "/event/next", Lambda_Extension_Identifier=identifier)
    note("shutdown", status, json.dumps(event))
    while BEHAVIOUR == "ignores SIGTERM":
        time.sleep(60)


if __name__ == "__main__":
    main()
