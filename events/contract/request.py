"""From a request event to a `Job`, in one place.

What the fields are is decided in request.schema.json. What a job's workflow must be beyond that
(known node classes, existing models) is decided by ComfyUI.
"""

import json
import uuid
from typing import Any

from events.contract.schemas import keys_of, kind_of, request_problems
from events.errors import InvalidRequest
from events.job import Caller, Job, S3Override

# These two limits are in request.schema.json, too.
MAX_ID_LENGTH = 200
MAX_WEBHOOK_TIMEOUT_S = 300
# ComfyUI copies a workflow recursively: a few hundred levels end the thread that runs its queue.
MAX_DEPTH = 100
EDITOR_FORMAT = (
    "found a workflow in ComfyUI's editor format (a 'nodes' list), expected the API format:"
    " in ComfyUI choose 'Export (API)' and send that file"
)


def as_request(event: Any) -> Any:
    """The request that an event holds; an event that holds none is returned unchanged.

    - A PyWorker envelope `{"payload": …, "auth_data": …, "session_id": …}` holds it in `payload`.
    - A bare workflow in API format, `{"1": {"class_type": …, "inputs": {…}}, …}`, as ComfyUI's
      menu *Export (API)* saves it, becomes `{"input": {"workflow_json": …}}`.
    """
    if isinstance(event, dict) and "input" not in event and isinstance(event.get("payload"), dict):
        event = event["payload"]
    return {"input": {"workflow_json": event}} if _is_workflow(event) else event


def is_editor_format(value: Any) -> bool:
    """Whether a value is a workflow as ComfyUI's editor saves it, which cannot be run.

    https://docs.comfy.org/specs/workflow_json
    """
    return isinstance(value, dict) and isinstance(value.get("nodes"), list)


def caller_of(event: Any) -> Caller:
    """Who gets the response. An invalid request has a caller, too, so wrong fields are skipped."""
    fields = _dict(_dict(as_request(event)).get("input"))
    webhook = _dict(fields.get("webhook"))
    request_id = _usable_id(fields.get("request_id"))
    return Caller(
        request_id=request_id or str(uuid.uuid4()),
        is_id_given=bool(request_id),
        webhook_url=_text(webhook.get("url")),
        webhook_secret=_text(webhook.get("secret")),
        webhook_timeout_s=_usable_timeout(webhook.get("timeout")),
        webhook_events=_texts(webhook.get("events")),
        extra_params=_dict(webhook.get("extra_params")),
    )


def parse_request(event: Any, caller: Caller) -> Job:
    """The job that a request event describes.

    Raises InvalidRequest, whose message names up to five problems by path. A source that could not
    read a request gives an InvalidRequest as the event; it is raised.
    """
    if isinstance(event, InvalidRequest):
        raise event
    request = as_request(event)
    _refuse_other_events(request)
    _refuse_other_workflows(request)
    if problems := request_problems(request):
        raise InvalidRequest(problems)
    fields = request["input"]
    for name in ("request_id", "workflow_json", "modifier", "modifications", "webhook"):
        refuse_beyond_json(f"input.{name}", fields.get(name))
    s3 = _dict(fields.get("s3"))
    template = fields.get("modifier") or ""
    return Job(
        caller=caller,
        workflow={} if template else fields["workflow_json"],
        template=template,
        modifications=_dict(fields.get("modifications")),
        s3=S3Override(
            access_key_id=_text(s3.get("access_key_id")),
            secret_access_key=_text(s3.get("secret_access_key")),
            endpoint_url=_text(s3.get("endpoint_url")),
            bucket_name=_text(s3.get("bucket_name")),
            region=_text(s3.get("region")),
        ),
        return_base64=bool(fields.get("return_outputs_as_base64")),
        return_temp=bool(fields.get("return_temp_outputs")),
    )


def _is_workflow(value: Any) -> bool:
    """Whether every value is a node. One of them may have the id `input`."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(node, dict) and "class_type" in node for node in value.values())
        and "workflow_json" not in _dict(value.get("input"))
    )


def _refuse_other_events(request: Any) -> None:
    if not isinstance(request, dict):
        raise InvalidRequest(
            f"the event: found {kind_of(request)}, expected an object with the key 'input'"
        )
    if "input" in request:
        return
    if is_editor_format(request):
        raise InvalidRequest(f"the event: {EDITOR_FORMAT}")
    raise InvalidRequest(
        "the event: 'input' is missing, and it is not an event of a known source; it has"
        f' {keys_of(request)}. Send {{"input": {{"workflow_json": {{...}}}}}}'
    )


def _refuse_other_workflows(request: dict[str, Any]) -> None:
    fields = _dict(request["input"])
    workflow = fields.get("workflow_json")
    if fields.get("modifier") and workflow:
        raise InvalidRequest(
            "input: found both 'modifier' and 'workflow_json', expected one of them"
        )
    if fields.get("modifications") and not fields.get("modifier"):
        raise InvalidRequest(
            "input.modifications: found without 'modifier', expected the name of the template there"
        )
    if is_editor_format(workflow):
        raise InvalidRequest(f"input.workflow_json: {EDITOR_FORMAT}")
    if isinstance(workflow, dict) and set(workflow) == {"prompt"}:
        raise InvalidRequest(
            "input.workflow_json: found an object with the key 'prompt' alone, expected the"
            " workflow itself: send the inner object"
        )


def refuse_beyond_json(path: str, value: Any) -> None:
    """Refuse what a schema cannot: a value too deep for ComfyUI, or not valid in JSON.

    Raises InvalidRequest, which names the path.
    """
    if _is_deeper(value, MAX_DEPTH):
        raise InvalidRequest(
            f"{path}: found more than {MAX_DEPTH} levels of nesting, expected fewer"
        )
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InvalidRequest(
            f"{path}: found half of a Unicode surrogate pair, expected whole characters"
        ) from None
    except ValueError:
        raise InvalidRequest(
            f"{path}: found NaN or Infinity, expected numbers that JSON has"
        ) from None


def _is_deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(item, levels - 1) for item in inner)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def _texts(value: Any) -> tuple[str, ...]:
    texts = value if isinstance(value, list) else []
    return tuple(sorted({text for text in texts if isinstance(text, str)}))


def _usable_id(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_ID_LENGTH:
        return ""
    return value.encode("utf-8", "replace").decode()


def _usable_timeout(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 < value <= MAX_WEBHOOK_TIMEOUT_S else None
