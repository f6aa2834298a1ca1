"""The client of one ComfyUI: submit a workflow, follow it, interrupt it.

Messages of the WebSocket are hints that make things fast; `/history` is the truth, and a job is
only over when its entry is there. What a message means is decided in handler/execution.py; the
HTTP calls are in handler/comfyui_api.py.
"""

import math
import select
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import websocket

from events.repeating_timer import RepeatingTimer
from handler.comfyui_api import (
    QUESTION_TIMEOUT_S,
    ComfyUIApi,
    ComfyUIGone,
    ComfyUIMute,
    HistoryEntry,
    parse,
)
from handler.rejection import explain_rejection

# Only its answer says what validation refuses. That may look through folders of models on a slow
# disk, and wait for another job's node that keeps the interpreter lock.
SUBMIT_TIMEOUT_S = 600.0
POLL_S = 1.0
STUCK_AFTER_S = 3.0
# ComfyUI sends to its listeners in turn: one that does not read holds up the others.
LISTEN_IDLE_S = 5.0
_HISTORY_EVERY_S = 0.01
_REOPEN_EVERY_S = 0.5
# 0 would be no limit at all.
_LEAST_TIMEOUT_S = 0.01

Message = dict[str, Any]


class ComfyUIStuck(RuntimeError):
    """ComfyUI answers, but the thread that runs its queue has ended: nothing will ever run."""


class ComfyUI:
    """One kept HTTP connection and one kept WebSocket to `base_url`. Used by one thread.

    Between jobs the WebSocket is given up after a while, see `rest`.
    """

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        self.client_id = uuid.uuid4().hex
        self._api = ComfyUIApi(base_url)
        self._still_since: float | None = None
        self._socket: websocket.WebSocket | None = None
        self._reopen_at = 0.0
        self._resting_since: float | None = time.monotonic()
        self._rest_lock = threading.Lock()
        self._rest = RepeatingTimer(LISTEN_IDLE_S, self._hang_up_after_rest)
        self._rest.start()

    def submit(
        self, workflow: dict[str, Any], prompt_id: str, timeout_s: float | None = None
    ) -> None:
        """Queue a workflow under an id of ours, within SUBMIT_TIMEOUT_S and `timeout_s`.

        Raises WorkflowRejected when ComfyUI's validation refuses any part of it, ComfyUIGone, and
        ComfyUIMute.
        """
        limit_s = SUBMIT_TIMEOUT_S if timeout_s is None else min(timeout_s, SUBMIT_TIMEOUT_S)
        until = time.monotonic() + limit_s
        self._listen(until)
        body = {"prompt": workflow, "client_id": self.client_id, "prompt_id": prompt_id}
        status, details = self._api.submit(body, until - time.monotonic())
        accepted = status == 200
        if accepted and not details.get("node_errors"):
            return
        if accepted:
            # ComfyUI would run the valid outputs only and drop the others in silence.
            self.interrupt(prompt_id, QUESTION_TIMEOUT_S)
        raise explain_rejection(details, workflow, status)

    def follow(
        self, prompt_id: str, on_message: Callable[[Message], None], *, deadline: float | None
    ) -> HistoryEntry:
        """Pass on every message of this prompt until it is over; return its history entry.

        `deadline` is a time of `time.monotonic()`. Raises TimeoutError at the deadline,
        ComfyUIGone and ComfyUIStuck. A dropped WebSocket costs messages, never the result.
        """
        self._still_since = None
        until = math.inf if deadline is None else deadline
        is_over = False
        while (left := until - time.monotonic()) > 0:
            # After its last message the job is in the history within milliseconds.
            message = None if is_over else self._receive(min(POLL_S, left))
            if message is None:
                if (entry := self._look_up(prompt_id, on_message, until)) is not None:
                    return entry
                if is_over:
                    time.sleep(_HISTORY_EVERY_S)
            elif _is_about(message, prompt_id):
                on_message(message)
                is_over = message["type"] == "executing" and message["data"]["node"] is None
        raise TimeoutError

    def interrupt(self, prompt_id: str, timeout_s: float) -> None:
        """Take the prompt out of the queue, or stop it at its next node or sampler step.

        ComfyUI does so once it reads it, be that after `timeout_s`. Raises ComfyUIGone.
        """
        self._api.interrupt(prompt_id, timeout_s)

    def is_over(self, prompt_id: str, timeout_s: float) -> bool:
        """Whether the prompt neither waits nor runs any more; False if ComfyUI does not say.

        Raises ComfyUIGone.
        """
        try:
            queue = self._api.queue(timeout_s)
        except ComfyUIMute:
            return False
        return not any(item[1] == prompt_id for part in queue.values() for item in part)

    def free(self) -> None:
        """Unload all models and drop the node cache, before the next prompt runs.

        Raises ComfyUIGone, ComfyUIMute.
        """
        self._api.free()

    def rest(self) -> None:
        """The job is over. If no other comes for a while, messages are not listened to."""
        if self._resting_since is None:
            self._resting_since = time.monotonic()

    def close(self) -> None:
        self._rest.stop()
        self._hang_up()
        self._api.close()

    def _hang_up_after_rest(self) -> bool:
        with self._rest_lock:
            since = self._resting_since
            if since is not None and time.monotonic() - since >= LISTEN_IDLE_S:
                self._hang_up()
        return True

    def _look_up(
        self, prompt_id: str, on_message: Callable[[Message], None], until: float
    ) -> HistoryEntry | None:
        try:
            entry = self._api.history(prompt_id, until - time.monotonic())
            if entry is None and self._is_queued(prompt_id, on_message, until):
                return None
            # It may have ended between the two questions.
            entry = entry or self._api.history(prompt_id, until - time.monotonic())
        except ComfyUIMute:
            # A node that holds the interpreter lock keeps the server from answering: it is alive.
            return None
        if entry is None:
            raise ComfyUIGone("ComfyUI does not know the job any more")
        return entry

    def _is_queued(
        self, prompt_id: str, on_message: Callable[[Message], None], until: float
    ) -> bool:
        queue = self._api.queue(until - time.monotonic())
        is_running = any(item[1] == prompt_id for item in queue["queue_running"])
        if is_running:
            # The message that said so may have been lost.
            on_message({"type": "execution_start", "data": {"prompt_id": prompt_id}})
        is_waiting = any(item[1] == prompt_id for item in queue["queue_pending"])
        self._note_standstill(is_waiting and not queue["queue_running"])
        return is_waiting or is_running

    def _note_standstill(self, stands_still: bool) -> None:
        now = time.monotonic()
        self._still_since = (self._still_since or now) if stands_still else None
        if self._still_since and now - self._still_since >= STUCK_AFTER_S:
            raise ComfyUIStuck("ComfyUI takes no job from its queue any more")

    def _listen(self, until: float) -> None:
        """Make sure that the WebSocket is open, and drop what came in since the last job."""
        with self._rest_lock:
            self._resting_since = None
        self._reopen_at = 0.0
        while self._socket and select.select([self._socket], [], [], 0)[0]:
            self._receive(0.001)
        if self._socket is None:
            self._open(until)

    def _receive(self, timeout_s: float) -> Message | None:
        """The next JSON message, or None after a silence of `timeout_s` or a dropped socket."""
        give_up = time.monotonic() + timeout_s
        if self._socket is None and time.monotonic() >= self._reopen_at:
            self._open(give_up)
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
                    message: Message = parse(data)
                    return message
        except websocket.WebSocketTimeoutException:
            pass
        except (websocket.WebSocketException, OSError):
            # ComfyUI forgets a client id when its old connection ends, so it is given time to end.
            self._hang_up()
            self._reopen_at = time.monotonic() + _REOPEN_EVERY_S
        return None

    def _open(self, until: float) -> None:
        left_s = min(until - time.monotonic(), QUESTION_TIMEOUT_S)
        address = self.base_url.replace("http", "ws", 1) + f"/ws?clientId={self.client_id}"
        try:
            self._socket = websocket.create_connection(
                address,
                timeout=max(left_s, _LEAST_TIMEOUT_S),
                skip_utf8_validation=True,
            )
        except (websocket.WebSocketException, OSError):
            self._reopen_at = time.monotonic() + _REOPEN_EVERY_S

    def _hang_up(self) -> None:
        if self._socket:
            self._socket.shutdown()  # type: ignore[no-untyped-call]
        self._socket = None


def _is_about(message: Message, prompt_id: str) -> bool:
    # Custom nodes broadcast messages of their own, of any shape.
    data = message.get("data") if isinstance(message, dict) else None
    return isinstance(data, dict) and data.get("prompt_id") == prompt_id
