"""The HTTP calls to one ComfyUI, each with a time limit: prompts, queue, history, memory.

The handler follows jobs with it (handler/comfyui.py, which adds the WebSocket); the worker asks
whether ComfyUI is ready and lets it unload its models (runtime/worker/comfyui_process.py).
The routes are in ComfyUI's server.py: https://docs.comfy.org/development/comfyui-server/comms_routes
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import urllib3

from handler.comfyui_version import ComfyUIVersion

# The most that a call may take that ComfyUI answers without running anything.
QUESTION_TIMEOUT_S = 2.0
# To urllib3, 0 means no limit.
_LEAST_TIMEOUT_S = 0.01
# A handshake of RFC 6455; the key may be any 16 bytes.
_UPGRADE_HEADERS = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "bGFtYmRhLWNvbWZ5dWkxMg==",
}

HistoryEntry = dict[str, Any]
# The objects of an entry, beside its list `prompt`: `PromptQueue.task_done` in execution.py.
HISTORY_PARTS = ("outputs", "status", "meta")


class ComfyUIGone(ConnectionError):
    """ComfyUI does not answer any more, or has forgotten the job: it died or was restarted."""


class ComfyUITimeout(ConnectionError):
    """ComfyUI has not answered in time. If it lives, it will still do what it was asked."""


class ComfyUIApi:
    """One kept connection to `base_url`. A call may be made from any thread.

    `version` is that of the ComfyUI there: which routes it has. Every call raises ComfyUIGone and
    ComfyUITimeout where its docstring does not say otherwise.
    """

    def __init__(self, base_url: str, version: ComfyUIVersion) -> None:
        self._version = version
        # Not requests: it costs half a millisecond a call, and would use a proxy.
        self._http = urllib3.connection_from_url(base_url, retries=False)

    def ready_version(self, timeout_s: float) -> ComfyUIVersion | None:
        """The version, once `/system_stats` and the WebSocket both answer. Raises nothing."""
        try:
            stats = self._request("GET", "/system_stats", timeout_s)
            if stats.status != 200:
                return None
            upgrade = self._request(
                "GET", "/ws", timeout_s, headers=_UPGRADE_HEADERS, preload_content=False
            )
        except (ComfyUIGone, ComfyUITimeout):
            return None
        # The WebSocket that the answer opens is of no use here.
        upgrade.close()
        return _version_in(stats.data) if upgrade.status == 101 else None

    def system_stats(self, timeout_s: float) -> dict[str, Any]:
        """`system` and `devices`: versions and names, as ComfyUI's server.py gives them."""
        stats: dict[str, Any] = self._get("/system_stats", timeout_s)
        return stats

    def submit(self, body: dict[str, Any], timeout_s: float) -> tuple[int, dict[str, Any]]:
        """Queue a prompt; the HTTP status, and the JSON object of the answer ({} if it is none)."""
        answer = self._request("POST", "/prompt", timeout_s, json=body)
        try:
            details = parse(answer.data)
        except ValueError:
            details = None
        return answer.status, details if isinstance(details, dict) else {}

    def queue(self, timeout_s: float) -> dict[str, list[Any]]:
        """`queue_running` and `queue_pending`: lists of items `[number, prompt id, …]`."""
        queue: dict[str, list[Any]] = self._get("/queue", timeout_s)
        return queue

    def history(self, prompt_id: str, timeout_s: float) -> HistoryEntry | None:
        """The entry of a prompt that is over; None when there is none.

        It has every part of HISTORY_PARTS. One that ComfyUI left out, or gave as null, is empty.
        """
        entries: dict[str, HistoryEntry] = self._get(f"/history/{prompt_id}", timeout_s)
        entry = entries.get(prompt_id)
        return None if entry is None else entry | _empty_parts(entry)

    def node_info(self, class_type: str, timeout_s: float = QUESTION_TIMEOUT_S) -> dict[str, Any]:
        """The declaration of a node class: `input`, `output_node` and others; {} if unknown.

        For a class that ComfyUI replaces, it is that of the new class, under the old input names.
        Raises ValueError, too: for an error page, where a node pack's declaration raises.
        """
        info = self._declaration_of(class_type, timeout_s)
        if info or not self._version.replaces_nodes:
            return info
        replacements = self._get("/node_replacements", timeout_s).get(class_type)
        if not replacements:
            return info
        # ComfyUI takes the first one.
        replacement = replacements[0]
        new = self._declaration_of(replacement["new_node_id"], timeout_s)
        return under_old_names(new, replacement.get("input_mapping") or ())

    def inputs_of(self, class_type: str, timeout_s: float = QUESTION_TIMEOUT_S) -> dict[str, Any]:
        """The declarations of a node class's inputs, by name: `[type, options?]` each."""
        inputs = self.node_info(class_type, timeout_s).get("input", {})
        return {**inputs.get("required", {}), **inputs.get("optional", {})}

    def interrupt(self, prompt_id: str, timeout_s: float) -> bool:
        """Take the prompt out of the queue, or stop it at its next node or sampler step.

        False when ComfyUI has not answered within `timeout_s`: it does so once it reads the calls.
        Raises ComfyUIGone.
        """
        has_answered = True
        calls: list[tuple[str, dict[str, Any]]]
        if self._version.has_cancel_route:
            calls = [(f"/api/jobs/{prompt_id}/cancel", {})]
        else:
            calls = [
                ("/queue", {"delete": [prompt_id]}),
                ("/interrupt", {"prompt_id": prompt_id}),
            ]
        for path, body in calls:
            try:
                self._post(path, body, timeout_s / len(calls))
            except ComfyUITimeout:
                has_answered = False
        return has_answered

    def free(self, timeout_s: float = QUESTION_TIMEOUT_S) -> None:
        """Unload all models and drop the node cache, before the next prompt runs."""
        self._post("/free", {"unload_models": True, "free_memory": True}, timeout_s)

    def forget(self, prompt_ids: Sequence[str], timeout_s: float = QUESTION_TIMEOUT_S) -> None:
        """Remove these prompts from the history; those that are not there change nothing."""
        self._post("/history", {"delete": list(prompt_ids)}, timeout_s)

    def close(self) -> None:
        self._http.close()

    def _declaration_of(self, class_type: str, timeout_s: float) -> dict[str, Any]:
        info = self._get(f"/object_info/{quote(class_type, safe='')}", timeout_s)
        entry: dict[str, Any] = info.get(class_type, {})
        return entry

    def _get(self, path: str, timeout_s: float) -> Any:
        return parse(self._request("GET", path, min(timeout_s, QUESTION_TIMEOUT_S)).data)

    def _post(self, path: str, body: dict[str, Any], timeout_s: float) -> None:
        self._request("POST", path, min(timeout_s, QUESTION_TIMEOUT_S), json=body)

    def _request(
        self, method: str, path: str, timeout_s: float, **details: Any
    ) -> urllib3.BaseHTTPResponse:
        try:
            limit = urllib3.Timeout(total=max(timeout_s, _LEAST_TIMEOUT_S))
            return self._http.request(method, path, timeout=limit, **details)
        except urllib3.exceptions.NewConnectionError as error:
            # A TimeoutError to urllib3, but the port is closed.
            raise ComfyUIGone(f"ComfyUI does not answer {path}") from error
        except urllib3.exceptions.TimeoutError as error:
            raise ComfyUITimeout(f"ComfyUI does not answer {path} in time") from error
        except urllib3.exceptions.HTTPError as error:
            # The request could not be sent in time.
            if any(isinstance(cause, TimeoutError) for cause in error.args):
                raise ComfyUITimeout(f"ComfyUI does not read {path} in time") from error
            raise ComfyUIGone(f"ComfyUI does not answer {path}") from error


def under_old_names(new: dict[str, Any], mapping: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The declaration `new` of a node class, for a node that still has the inputs of an old class.

    `mapping` says which input of the new class gets the value of which old one: ComfyUI's
    app/node_replace_manager.py. All count as required.
    """
    inputs = {
        **new.get("input", {}).get("required", {}),
        **new.get("input", {}).get("optional", {}),
    }
    # "images.image0" is a part of the input "images".
    old = {
        each["old_id"]: inputs.get(each["new_id"]) or inputs.get(each["new_id"].split(".")[0])
        for each in mapping
        if "old_id" in each
    }
    return {**new, "input": {"required": old}}


def _version_in(stats: bytes) -> ComfyUIVersion:
    """That in an answer of `/system_stats`."""
    try:
        return ComfyUIVersion(str(parse(stats)["system"]["comfyui_version"]))
    except (ValueError, TypeError, KeyError):
        return ComfyUIVersion()


def _empty_parts(entry: HistoryEntry) -> HistoryEntry:
    return {name: {} for name in HISTORY_PARTS if not isinstance(entry.get(name), dict)}


def parse(raw: bytes | str) -> Any:
    """JSON as ComfyUI writes it; its NaN and Infinity, which JSON lacks, become strings."""
    return json.loads(raw, parse_constant=str)
