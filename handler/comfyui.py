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

import urllib3
import websocket

from handler.rejection import explain_rejection

HTTP_TIMEOUT_S = 30.0
POLL_S = 1.0
STUCK_AFTER_POLLS = 3
_HISTORY_RACE_S = 5.0
_REOPEN_EVERY_S = 0.5

Message = dict[str, Any]
HistoryEntry = dict[str, Any]


class ComfyUIGone(ConnectionError):
    """ComfyUI does not answer any more, or has forgotten the job: it died or was restarted."""


class ComfyUIStuck(RuntimeError):
    """ComfyUI answers, but the thread that runs its queue has ended: nothing will ever run."""


class ComfyUI:
    """One kept HTTP connection and one kept WebSocket to `base_url`. Used by one thread."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        self.client_id = uuid.uuid4().hex
        # Not requests: half a millisecond a call counts here, and no proxy must come between.
        self._http = urllib3.connection_from_url(base_url, retries=False, timeout=HTTP_TIMEOUT_S)
        self._idle_polls = 0
        self._socket: websocket.WebSocket | None = None
        self._reopen_at = 0.0

    def submit(self, workflow: dict[str, Any], prompt_id: str) -> None:
        """Queue a workflow under an id of ours.

        Raises WorkflowRejected when ComfyUI's validation refuses any part of it, and ComfyUIGone.
        """
        self._listen()
        body = {"prompt": workflow, "client_id": self.client_id, "prompt_id": prompt_id}
        answer = self._post("/prompt", body)
        accepted = answer.status == 200
        details = _json_object(answer)
        if accepted and not details.get("node_errors"):
            return
        if accepted:
            # ComfyUI would run the valid outputs only and drop the others in silence.
            self.interrupt(prompt_id)
        raise explain_rejection(details, workflow, answer.status)

    def follow(
        self, prompt_id: str, on_message: Callable[[Message], None], *, deadline: float | None
    ) -> HistoryEntry:
        """Pass on every message of this prompt until it is over; return its history entry.

        `deadline` is a time of `time.monotonic()`. Raises TimeoutError at the deadline,
        ComfyUIGone and ComfyUIStuck. A dropped WebSocket costs messages, never the result.
        """
        self._idle_polls = 0
        while True:
            left = POLL_S if deadline is None else min(POLL_S, deadline - time.monotonic())
            if left <= 0:
                raise TimeoutError
            message = self._receive(left)
            if message is None:
                if (entry := self._look_up(prompt_id)) is not None:
                    return entry
            elif _is_about(message, prompt_id):
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
        self._http.close()

    def _look_up(self, prompt_id: str) -> HistoryEntry | None:
        try:
            entry = self._history(prompt_id)
            if entry is None and self._is_queued(prompt_id):
                return None
            # It may have ended between the two questions.
            entry = entry or self._history(prompt_id)
        except urllib3.exceptions.TimeoutError:
            # A node that holds the interpreter lock keeps the server from answering: it is alive.
            return None
        if entry is None:
            raise ComfyUIGone("ComfyUI does not know the job any more")
        return entry

    def _is_queued(self, prompt_id: str) -> bool:
        queue = self._get("/queue")
        is_waiting = any(item[1] == prompt_id for item in queue["queue_pending"])
        stands_still = is_waiting and not queue["queue_running"]
        self._idle_polls = self._idle_polls + 1 if stands_still else 0
        if self._idle_polls >= STUCK_AFTER_POLLS:
            raise ComfyUIStuck("ComfyUI takes no job from its queue any more")
        return is_waiting or any(item[1] == prompt_id for item in queue["queue_running"])

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
                    message: Message = _parse(data)
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
        return _parse(self._request("GET", path).data)

    def _post(self, path: str, body: dict[str, Any]) -> urllib3.BaseHTTPResponse:
        try:
            return self._request("POST", path, json=body)
        except urllib3.exceptions.TimeoutError as error:
            raise ComfyUIGone(f"ComfyUI does not answer {path}") from error

    def _request(self, method: str, path: str, **body: Any) -> urllib3.BaseHTTPResponse:
        try:
            return self._http.request(method, path, **body)
        except urllib3.exceptions.NewConnectionError as error:
            # It is a TimeoutError to urllib3, but here nobody listens any more.
            raise ComfyUIGone(f"ComfyUI does not answer {path}") from error
        except urllib3.exceptions.TimeoutError:
            raise
        except urllib3.exceptions.HTTPError as error:
            raise ComfyUIGone(f"ComfyUI does not answer {path}") from error


def _is_about(message: Message, prompt_id: str) -> bool:
    # Custom nodes broadcast messages of their own, of any shape.
    data = message.get("data") if isinstance(message, dict) else None
    return isinstance(data, dict) and data.get("prompt_id") == prompt_id


def _parse(raw: bytes | str) -> Any:
    """JSON as ComfyUI writes it; its NaN and Infinity, which JSON lacks, become strings."""
    return json.loads(raw, parse_constant=str)


def _json_object(answer: urllib3.BaseHTTPResponse) -> dict[str, Any]:
    try:
        body = _parse(answer.data)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
