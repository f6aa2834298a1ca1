"""The client of one ComfyUI: submit a workflow, follow it, interrupt it.

Messages of the WebSocket are hints that make things fast; `/history` is the truth, and a job is
only over when its entry is there. What a message means is decided in handler/execution.py.
"""

import json
import select
import time
import uuid
from collections.abc import Callable
from typing import Any

import requests
import websocket

from handler.rejection import explain_rejection

HTTP_TIMEOUT_S = 30.0
POLL_S = 1.0
_HISTORY_RACE_S = 5.0
_REOPEN_EVERY_S = 1.0

Message = dict[str, Any]
HistoryEntry = dict[str, Any]


class ComfyUIGone(ConnectionError):
    """ComfyUI does not answer any more, or has forgotten the job: it died or was restarted."""


class ComfyUI:
    """One kept HTTP session and one kept WebSocket to `base_url`. Used by one thread."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        self.client_id = uuid.uuid4().hex
        self._session = requests.Session()
        # Proxies of the environment are for the outside; ComfyUI is on the loopback interface.
        self._session.trust_env = False
        self._socket: websocket.WebSocket | None = None
        self._reopen_at = 0.0

    def submit(self, workflow: dict[str, Any], prompt_id: str) -> None:
        """Queue a workflow under an id of ours.

        Raises WorkflowRejected when ComfyUI's validation refuses any part of it, and ComfyUIGone.
        """
        self._listen()
        body = {"prompt": workflow, "client_id": self.client_id, "prompt_id": prompt_id}
        answer = self._post("/prompt", body)
        accepted = answer.status_code == 200
        details = _json_object(answer)
        if accepted and not details.get("node_errors"):
            return
        if accepted:
            # ComfyUI would run the valid outputs only and drop the others in silence.
            self.interrupt(prompt_id)
        raise explain_rejection(details, workflow, answer.status_code)

    def follow(
        self, prompt_id: str, on_message: Callable[[Message], None], *, deadline: float | None
    ) -> HistoryEntry:
        """Pass on every message of this prompt until it is over; return its history entry.

        `deadline` is a time of `time.monotonic()`. Raises TimeoutError at the deadline, and
        ComfyUIGone. A dropped WebSocket costs messages, never the result.
        """
        while True:
            left = POLL_S if deadline is None else min(POLL_S, deadline - time.monotonic())
            if left <= 0:
                raise TimeoutError
            message = self._receive(left)
            if message is None:
                if (entry := self._look_up(prompt_id)) is not None:
                    return entry
            elif message["data"].get("prompt_id") == prompt_id:
                on_message(message)
                if message["type"] == "executing" and message["data"]["node"] is None:
                    return self._history_soon(prompt_id)

    def interrupt(self, prompt_id: str) -> None:
        """Take the prompt out of the queue, or stop it at its next node or sampler step."""
        self._post("/queue", {"delete": [prompt_id]})
        self._post("/interrupt", {"prompt_id": prompt_id})

    def is_over(self, prompt_id: str) -> bool:
        """Whether the prompt neither waits nor runs any more."""
        queue = self._get("/queue")
        return not any(item[1] == prompt_id for part in queue.values() for item in part)

    def free(self) -> None:
        """Unload all models and drop the node cache, before the next prompt runs."""
        self._post("/free", {"unload_models": True, "free_memory": True})

    def close(self) -> None:
        self._hang_up()
        self._session.close()

    def _look_up(self, prompt_id: str) -> HistoryEntry | None:
        try:
            if (entry := self._history(prompt_id)) or not self.is_over(prompt_id):
                return entry
            # It may have ended between the two questions.
            entry = self._history(prompt_id)
        except requests.Timeout:
            # A node that holds the interpreter lock keeps the server from answering: it is alive.
            return None
        if entry is None:
            raise ComfyUIGone("ComfyUI does not know the job any more")
        return entry

    def _history_soon(self, prompt_id: str) -> HistoryEntry:
        give_up = time.monotonic() + _HISTORY_RACE_S
        while (entry := self._history(prompt_id)) is None:
            if time.monotonic() > give_up:
                raise ComfyUIGone("ComfyUI ended the job without an entry in its history")
            time.sleep(0.01)
        return entry

    def _history(self, prompt_id: str) -> HistoryEntry | None:
        found: dict[str, HistoryEntry] = self._get(f"/history/{prompt_id}")
        return found.get(prompt_id)

    def _listen(self) -> None:
        """Make sure that the WebSocket is open, and drop what came in since the last job."""
        self._reopen_at = 0.0
        while self._socket and select.select([self._socket], [], [], 0)[0]:
            self._receive(0.001)
        if self._socket is None:
            self._open()

    def _receive(self, timeout_s: float) -> Message | None:
        """The next JSON message, or None after a silence of `timeout_s` or a dropped socket."""
        give_up = time.monotonic() + timeout_s
        if self._socket is None and time.monotonic() >= self._reopen_at:
            self._open()
        if self._socket is None:
            time.sleep(min(timeout_s, 0.1))
            return None
        try:
            while (left := give_up - time.monotonic()) > 0:
                self._socket.settimeout(left)
                opcode, data = self._socket.recv_data()
                if opcode == websocket.ABNF.OPCODE_CLOSE:
                    raise websocket.WebSocketConnectionClosedException("closed by ComfyUI")
                # Binary frames are preview pictures.
                if opcode == websocket.ABNF.OPCODE_TEXT:
                    message: Message = json.loads(data)
                    return message
        except websocket.WebSocketTimeoutException:
            pass
        except (websocket.WebSocketException, OSError):
            # ComfyUI forgets a client id when its old connection ends, so it is given time to end.
            self._hang_up()
            self._reopen_at = time.monotonic() + _REOPEN_EVERY_S
        return None

    def _open(self) -> None:
        address = self.base_url.replace("http", "ws", 1) + f"/ws?clientId={self.client_id}"
        try:
            self._socket = websocket.create_connection(
                address,
                timeout=HTTP_TIMEOUT_S,
                skip_utf8_validation=True,
            )
        except (websocket.WebSocketException, OSError):
            self._reopen_at = time.monotonic() + _REOPEN_EVERY_S

    def _hang_up(self) -> None:
        if self._socket:
            self._socket.shutdown()  # type: ignore[no-untyped-call]
        self._socket = None

    def _get(self, path: str) -> Any:
        try:
            return self._session.get(self.base_url + path, timeout=HTTP_TIMEOUT_S).json()
        except requests.Timeout:
            raise
        except requests.RequestException as error:
            raise ComfyUIGone(f"ComfyUI does not answer {path}") from error

    def _post(self, path: str, body: dict[str, Any]) -> requests.Response:
        try:
            return self._session.post(self.base_url + path, json=body, timeout=HTTP_TIMEOUT_S)
        except requests.RequestException as error:
            raise ComfyUIGone(f"ComfyUI does not answer {path}") from error


def _json_object(answer: requests.Response) -> dict[str, Any]:
    try:
        body = answer.json()
    except requests.JSONDecodeError:
        return {}
    return body if isinstance(body, dict) else {}
