"""Runs inside a container, which has no network: `python -c "$(cat post.py)" URL SECONDS`.

Sends stdin to a server of the container, once it listens, and prints the body of the answer.
"""

import http.client
import sys
import time
import urllib.error
import urllib.request

START_S = 180


def main(url: str, timeout_s: float) -> None:
    request = urllib.request.Request(
        url, sys.stdin.buffer.read(), {"Content-Type": "application/json"}
    )
    until = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                print(answer.read().decode())
            return
        except urllib.error.HTTPError as error:
            sys.exit(f"{url} answered {error.code}: {error.read().decode()}")
        except (OSError, http.client.HTTPException):
            if time.monotonic() > until:
                raise
        time.sleep(0.2)


main(sys.argv[1], float(sys.argv[2]))
