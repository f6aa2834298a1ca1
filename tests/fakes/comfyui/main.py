"""Stands in for ComfyUI where only its life counts: it starts in 0.1 s, answers, and can be killed.

A file `broken` in its user folder makes it end at its start. The real one is in every other test.
"""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response({"/system_stats": 200, "/ws": 101}.get(self.path, 404))
        self.end_headers()

    def do_POST(self) -> None:
        self.send_response(200 if self.path == "/free" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


def main() -> None:
    user = Path(sys.argv[sys.argv.index("--user-directory") + 1])
    if (user / "broken").exists():
        sys.exit("broken on purpose")
    port = int(sys.argv[sys.argv.index("--port") + 1])
    with ThreadingHTTPServer(("127.0.0.1", port), Answers) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
