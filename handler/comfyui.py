"""The client of one ComfyUI: submit a workflow, follow it, interrupt it.

The messages of the WebSocket may be lost; `/history` is the truth, and a job is over when its entry
is there. What a message means is decided in execution.py, what a refusal means in rejection.py; the
HTTP calls are in comfyui_api.py.
"""

import math
import select
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import wait
from contextlib import suppress
from enum import Enum
from typing import Any

import websocket

from events.repeating_timer import RepeatingTimer
from handler.cancellation import CHECK_EVERY_S
from handler.comfyui_api import (
    QUESTION_TIMEOUT_S,
    ComfyUIApi,
    ComfyUIGone,
    ComfyUITimeout,
    HistoryEntry,
    parse,
)
from handler.comfyui_version import ComfyUIVersion
from handler.daemon_future import in_background
from handler.rejection import explain_rejection

# Validation lists the folders of models, which may be on a slow disk, and waits while the node of
# another job holds the interpreter lock. Only its answer says what it refuses.
SUBMIT_TIMEOUT_S = 600.0
POLL_S = 1.0
STUCK_AFTER_S = 3.0
# ComfyUI sends to its WebSockets in turn: a client that does not read delays the others.
LISTEN_IDLE_S = 5.0
_HISTORY_EVERY_S = 0.01
_REOPEN_EVERY_S = 0.5
# What is only shown waits no longer for a node that holds the interpreter lock.
_CLASS_TIMEOUT_S = 0.5
# To websocket-client, 0 means no limit.
_LEAST_TIMEOUT_S = 0.01

Message = dict[str, Any]


class ComfyUIStuck(RuntimeError):
    """ComfyUI answers, but the thread that runs its queue has ended: nothing will ever run."""


class Place(Enum):
    """Where a prompt is in ComfyUI."""

    WAITS = "waits"
    RUNS = "runs"
    OVER = "over"


class ComfyUI:
    """One HTTP connection and one WebSocket to a ComfyUI of this version, kept between jobs.

    One thread calls its methods. A second thread, the timer below, closes the WebSocket of a client
    that has had no job for LISTEN_IDLE_S. It touches the socket only between `end_job` and the next
    `submit`, and only under `_idle_lock`.
    """

    def __init__(self, base_url: str, version: ComfyUIVersion) -> None:
        self.base_url = base_url
        self.client_id = uuid.uuid4().hex
        self._api = ComfyUIApi(base_url, version)
        self._are_outputs: dict[str, bool] = {}
        self._stalled_since: float | None = None
        self._socket: websocket.WebSocket | None = None
        self._reopen_at = 0.0
        # None while a job runs.
        self._idle_since: float | None = time.monotonic()
        self._idle_lock = threading.Lock()
        self._idle_timer = RepeatingTimer(LISTEN_IDLE_S, self._disconnect_if_idle)
        self._idle_timer.start()

    def submit(
        self,
        workflow: dict[str, Any],
        prompt_id: str,
        timeout_s: float | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Queue a workflow as `prompt_id`, within SUBMIT_TIMEOUT_S and `timeout_s`.

        `check` is called every CHECK_EVERY_S and ends the wait by raising; the prompt is taken out
        of the queue again once ComfyUI has read it. Raises WorkflowRejected when ComfyUI's
        validation refuses any part of it, ComfyUIGone, and ComfyUITimeout.
        """
        limit_s = SUBMIT_TIMEOUT_S if timeout_s is None else min(timeout_s, SUBMIT_TIMEOUT_S)
        until = time.monotonic() + limit_s
        self._listen(until)
        body = {"prompt": workflow, "client_id": self.client_id, "prompt_id": prompt_id}
        answer = in_background(lambda: self._api.submit(body, until - time.monotonic()))
        try:
            while wait([answer], CHECK_EVERY_S).not_done:
                check()
        except BaseException:
            answer.add_done_callback(lambda _: self._take_out(prompt_id))
            raise
        status, details = answer.result()
        accepted = status == 200
        if accepted and not details.get("node_errors"):
            return
        if accepted:
            # ComfyUI would run the valid outputs and leave out the others without a message.
            self.interrupt(prompt_id, QUESTION_TIMEOUT_S)
        raise explain_rejection(details, workflow, status, self._inputs_of)

    def follow(
        self,
        prompt_id: str,
        on_message: Callable[[Message], None],
        *,
        deadline: float | None,
        check: Callable[[], None] = lambda: None,
    ) -> HistoryEntry:
        """Pass on every message of this prompt until it is over; return its history entry.

        `deadline` is a time of `time.monotonic()`. `check` is called every CHECK_EVERY_S and ends
        the wait by raising. Raises TimeoutError at the deadline, ComfyUIGone and ComfyUIStuck. A
        lost WebSocket costs messages, never the result.
        """
        self._stalled_since = None
        until = math.inf if deadline is None else deadline
        is_over = False
        look_up_at = time.monotonic() + POLL_S
        while (left := until - time.monotonic()) > 0:
            check()
            # After its last message the job is in the history within milliseconds.
            message = None if is_over else self._receive(min(CHECK_EVERY_S, left))
            if message is not None and not _is_about(message, prompt_id):
                message = None
            if message is None and not is_over and time.monotonic() < look_up_at:
                continue
            look_up_at = time.monotonic() + POLL_S
            if message is None:
                if (entry := self._look_up(prompt_id, on_message, until)) is not None:
                    return entry
                if is_over:
                    time.sleep(_HISTORY_EVERY_S)
            else:
                on_message(message)
                is_over = message["type"] == "executing" and message["data"]["node"] is None
        raise TimeoutError

    def entry(self, prompt_id: str) -> HistoryEntry | None:
        """The history entry of a prompt; None when there is none, or ComfyUI does not answer."""
        try:
            return self._api.history(prompt_id, QUESTION_TIMEOUT_S)
        except (ComfyUIGone, ComfyUITimeout):
            return None

    def interrupt(self, prompt_id: str, timeout_s: float) -> None:
        """Take the prompt out of the queue, or stop it at its next node or sampler step.

        Returns after `timeout_s` at the latest; a ComfyUI that is busy does it when it reads the
        request. Raises ComfyUIGone.
        """
        self._api.interrupt(prompt_id, timeout_s)

    def place_of(self, prompt_id: str, timeout_s: float) -> Place | None:
        """Where a prompt is that was queued; None if ComfyUI does not answer.

        Raises ComfyUIGone.
        """
        try:
            queue = self._api.queue(timeout_s)
        except ComfyUITimeout:
            return None
        for place, part in ((Place.RUNS, "queue_running"), (Place.WAITS, "queue_pending")):
            if any(item[1] == prompt_id for item in queue[part]):
                return place
        return Place.OVER

    def free(self) -> None:
        """Unload all models and drop the node cache, before the next prompt runs.

        Raises ComfyUIGone, ComfyUITimeout.
        """
        self._api.free()

    def node_info(self, class_type: str) -> dict[str, Any]:
        """The declaration of a node class; empty for an unknown class.

        Raises ComfyUIGone, ComfyUITimeout, and ValueError for an error page, where a node pack's
        declaration raises.
        """
        return self._api.node_info(class_type)

    def is_output(self, class_type: str) -> bool:
        """Whether ComfyUI runs nodes of this class for their own sake; it is asked once a class.

        Raises ComfyUIGone, ComfyUITimeout, ValueError.
        """
        if class_type not in self._are_outputs:
            info = self._api.node_info(class_type, _CLASS_TIMEOUT_S)
            self._are_outputs[class_type] = bool(info.get("output_node"))
        return self._are_outputs[class_type]

    def end_job(self) -> None:
        """The job is over: the WebSocket is closed unless another one comes soon."""
        with self._idle_lock:
            if self._idle_since is None:
                self._idle_since = time.monotonic()

    def close(self) -> None:
        """Close both connections; a later call would open them again."""
        self._idle_timer.stop()
        self._disconnect()
        self._api.close()

    def _take_out(self, prompt_id: str) -> None:
        with suppress(ComfyUIGone):
            self.interrupt(prompt_id, QUESTION_TIMEOUT_S)

    def _disconnect_if_idle(self) -> bool:
        with self._idle_lock:
            since = self._idle_since
            if since is not None and time.monotonic() - since >= LISTEN_IDLE_S:
                self._disconnect()
        return True

    def _inputs_of(self, class_type: str) -> dict[str, Any]:
        """The declarations of a class's inputs; empty if ComfyUI does not give them in time."""
        try:
            return self._api.inputs_of(class_type)
        except (ComfyUIGone, ComfyUITimeout, ValueError):
            return {}

    def _look_up(
        self, prompt_id: str, on_message: Callable[[Message], None], until: float
    ) -> HistoryEntry | None:
        try:
            entry = self._api.history(prompt_id, until - time.monotonic())
            if entry is None and self._is_queued(prompt_id, on_message, until):
                return None
            # It may have ended between the two requests.
            entry = entry or self._api.history(prompt_id, until - time.monotonic())
        except ComfyUITimeout:
            # It lives: a node that holds the interpreter lock keeps the server from answering.
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
            # Its message may have been lost.
            on_message({"type": "execution_start", "data": {"prompt_id": prompt_id}})
        before = [item for item in queue["queue_pending"] if item[1] != prompt_id]
        is_waiting = len(before) < len(queue["queue_pending"])
        if is_waiting:
            number = min(item[0] for item in queue["queue_pending"] if item[1] == prompt_id)
            ahead = sum(item[0] < number for item in before) + len(queue["queue_running"])
            data = {"prompt_id": prompt_id, "position": ahead}
            on_message({"type": "queue_position", "data": data})
        self._check_stalled(is_waiting and not queue["queue_running"])
        return is_waiting or is_running

    def _check_stalled(self, is_stalled: bool) -> None:
        now = time.monotonic()
        self._stalled_since = (self._stalled_since or now) if is_stalled else None
        if self._stalled_since and now - self._stalled_since >= STUCK_AFTER_S:
            raise ComfyUIStuck("ComfyUI takes no job from its queue any more")

    def _listen(self, until: float) -> None:
        """Make sure that the WebSocket is open, and drop the messages since the last job."""
        with self._idle_lock:
            self._idle_since = None
        self._reopen_at = 0.0
        while self._socket and select.select([self._socket], [], [], 0)[0]:
            self._receive(0.001)
        if self._socket is None:
            self._open(until)

    def _receive(self, timeout_s: float) -> Message | None:
        """The next JSON message; None after `timeout_s`, or when the WebSocket was lost."""
        until = time.monotonic() + timeout_s
        if self._socket is None and time.monotonic() >= self._reopen_at:
            self._open(until)
        if self._socket is None:
            time.sleep(min(timeout_s, 0.1))
            return None
        try:
            while (left := until - time.monotonic()) > 0:
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
            # ComfyUI forgets a client id when its old connection ends, so that one must end first.
            self._disconnect()
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

    def _disconnect(self) -> None:
        if self._socket:
            self._socket.shutdown()  # type: ignore[no-untyped-call]
        self._socket = None


def _is_about(message: Message, prompt_id: str) -> bool:
    # Custom nodes broadcast messages of their own, of any shape.
    data = message.get("data") if isinstance(message, dict) else None
    return isinstance(data, dict) and data.get("prompt_id") == prompt_id
