"""The minimal client that runs a workflow on ComfyUI and reads its result.

It keeps a WebSocket and an HTTP connection. It has no deadline and no error handling.
"""

import json
import uuid
from http.client import HTTPConnection
from typing import Any

import requests
import websocket


class RawClient:
    """The baseline: HTTP with the standard library."""

    def __init__(self, base_url: str) -> None:
        host = base_url.removeprefix("http://")
        self._client_id = uuid.uuid4().hex
        self._http = HTTPConnection(host)
        address = f"ws://{host}/ws?clientId={self._client_id}"
        self._socket = websocket.create_connection(address, skip_utf8_validation=True)

    def run(self, workflow: dict[str, Any]) -> dict[str, Any]:
        """Queue the workflow, wait for the message that it has ended, return its history entry."""
        body = {"prompt": workflow, "client_id": self._client_id}
        prompt_id = self._ask("POST", "/prompt", json.dumps(body).encode())["prompt_id"]
        while True:
            message = json.loads(self._socket.recv())
            self.on_message(message)
            data = message["data"]
            if message["type"] == "executing" and data["node"] is None:
                assert data["prompt_id"] == prompt_id
                break
        entry: dict[str, Any] = self._ask("GET", f"/history/{prompt_id}")[prompt_id]
        assert entry["status"]["completed"], entry["status"]
        return entry

    def on_message(self, message: dict[str, Any]) -> None:
        """For a benchmark that measures within a run."""

    def close(self) -> None:
        self._socket.close()
        self._http.close()

    def _ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        headers = {"Content-Type": "application/json"} if body else {}
        self._http.request(method, path, body, headers)
        return json.loads(self._http.getresponse().read())


class RawRequestsClient(RawClient):
    """HTTP with a kept requests.Session, the usual choice."""

    def __init__(self, base_url: str) -> None:
        super().__init__(base_url)
        self._base_url = base_url
        self._session = requests.Session()
        self._session.trust_env = False

    def close(self) -> None:
        super().close()
        self._session.close()

    def _ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        return self._session.request(method, self._base_url + path, data=body, timeout=30).json()
