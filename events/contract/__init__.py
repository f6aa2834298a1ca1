"""The published schemas, and the one place where a request event becomes a `Job`.

What went wrong is told by path, by what was found and by what was expected; never by value where
the value may be a secret.
"""

import json
import uuid
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.exceptions import relevance

from events.errors import InvalidRequest
from events.job import Caller, Job, S3Override

MAX_REPORTED = 5
# The same limits stand in request.schema.json.
MAX_ID_LENGTH = 200
# ComfyUI copies a workflow recursively; a few hundred levels end its queue for good.
MAX_DEPTH = 100
MAX_WEBHOOK_TIMEOUT_S = 300
_SECRET_PATHS = (("input", "s3"), ("input", "webhook"))
_TYPE_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
}
_SCHEMA_TYPES = {
    "object": "an object",
    "array": "a list",
    "string": "a string",
    "boolean": "true or false",
    "number": "a number",
    "integer": "a whole number",
}


@cache
def schema(name: str) -> dict[str, Any]:
    """The published schema `request`, `response` or `webhook` (JSON Schema 2020-12)."""
    text = resources.files(__package__).joinpath(f"{name}.schema.json").read_text("utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


@cache
def _validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(schema(name))


def unwrap(event: Any) -> Any:
    """The request inside a PyWorker envelope `{payload, auth_data, session_id}`, else the event."""
    if isinstance(event, dict) and "input" not in event and isinstance(event.get("payload"), dict):
        return event["payload"]
    return event


def caller_of(event: Any) -> Caller:
    """Who gets the answer, read leniently: an invalid request is answered, too."""
    given = _dict(_dict(unwrap(event)).get("input"))
    webhook = _dict(given.get("webhook"))
    request_id = _usable_id(given.get("request_id"))
    return Caller(
        request_id=request_id or str(uuid.uuid4()),
        is_id_given=bool(request_id),
        webhook_url=_text(webhook.get("url")),
        webhook_secret=_text(webhook.get("secret")),
        webhook_timeout_s=_usable_timeout(webhook.get("timeout")),
        extra_params=_dict(webhook.get("extra_params")),
    )


def parse_request(event: Any, caller: Caller) -> Job:
    """The job that a request event describes.

    Raises InvalidRequest, which names up to five problems by path. A source gives one instead of
    an event that it could not read.
    """
    if isinstance(event, InvalidRequest):
        raise event
    request = unwrap(event)
    _refuse_other_events(request)
    _refuse_editor_format(request)
    problems = sorted(_validator("request").iter_errors(request), key=relevance, reverse=True)
    if problems:
        raise InvalidRequest(_explain(problems))
    given = request["input"]
    _refuse_beyond_json(given)
    s3 = _dict(given.get("s3"))
    return Job(
        caller=caller,
        workflow=given["workflow_json"],
        s3=S3Override(
            access_key_id=_text(s3.get("access_key_id")),
            secret_access_key=_text(s3.get("secret_access_key")),
            endpoint_url=_text(s3.get("endpoint_url")),
            bucket_name=_text(s3.get("bucket_name")),
            region=_text(s3.get("region")),
        ),
        return_base64=bool(given.get("return_outputs_as_base64")),
        return_temp=bool(given.get("return_temp_outputs")),
    )


def response_problems(response: Any) -> list[str]:
    """Where a response differs from the published schema; empty when it does not."""
    return [_one_problem(error) for error in _validator("response").iter_errors(response)]


def webhook_problems(body: Any) -> list[str]:
    """Where a webhook body differs from the published schema; empty when it does not."""
    return [_one_problem(error) for error in _validator("webhook").iter_errors(body)]


def _refuse_other_events(request: Any) -> None:
    if not isinstance(request, dict):
        found = _TYPE_NAMES.get(type(request), "something else")
        raise InvalidRequest(f"the event: found {found}, expected an object with the key 'input'")
    if "input" not in request:
        raise InvalidRequest(
            "the event: 'input' is missing, and it is not an event of a known source; it has"
            f' {_show_keys(request)}. Send {{"input": {{"workflow_json": {{...}}}}}}'
        )


def _refuse_beyond_json(given: dict[str, Any]) -> None:
    for name in ("request_id", "workflow_json", "webhook"):
        path, value = f"input.{name}", given.get(name)
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


def _refuse_editor_format(request: Any) -> None:
    workflow = _dict(_dict(request).get("input")).get("workflow_json")
    if isinstance(workflow, dict) and isinstance(workflow.get("nodes"), list):
        raise InvalidRequest(
            "input.workflow_json: found a workflow in ComfyUI's editor format (a 'nodes' list),"
            " expected the API format: in ComfyUI choose 'Export (API)' and send that file"
        )
    if isinstance(workflow, dict) and set(workflow) == {"prompt"}:
        raise InvalidRequest(
            "input.workflow_json: found an object with the key 'prompt' alone, expected the"
            " workflow itself: send the inner object"
        )


def _explain(problems: list[ValidationError]) -> str:
    sentences = list(dict.fromkeys(_one_problem(error) for error in problems))
    shown, left = sentences[:MAX_REPORTED], len(sentences) - MAX_REPORTED
    return "; ".join(shown) + (f"; and {left} more" if left > 0 else "")


def _one_problem(error: ValidationError) -> str:
    path = tuple(str(part) for part in error.absolute_path)
    return f"{_show_path(path)}: {_sentence(error, path)}"


def _sentence(error: ValidationError, path: tuple[str, ...]) -> str:
    instance: Any = error.instance
    value: Any = error.validator_value
    found = _show_found(instance, path)
    match error.validator:
        case "required":
            missing = ", ".join(f"'{name}'" for name in value if name not in instance)
            return f"{missing} is missing; the object has {_show_keys(instance)}"
        case "type":
            wanted = [value] if isinstance(value, str) else [t for t in value if t != "null"]
            names = " or ".join(_SCHEMA_TYPES[t] for t in wanted)
            return f"found {found}, expected {names}"
        case "pattern":
            return f"found {found}, expected an http:// or https:// URL"
        case "minProperties":
            return "found an empty object, expected at least one node"
        case "minLength":
            return "found an empty string, expected text"
        case "maxLength":
            return f"found {len(instance)} characters, expected at most {value}"
        case "maximum" | "exclusiveMinimum":
            bound = "at most" if error.validator == "maximum" else "more than"
            return f"found {found}, expected {bound} {value}"
        case _:
            return f"found {found}, which breaks '{error.validator}' of the schema"


def _show_path(path: Iterable[str]) -> str:
    return ".".join(_short(part) for part in path) or "the event"


def _show_found(value: Any, path: tuple[str, ...]) -> str:
    kind = _TYPE_NAMES.get(type(value), type(value).__name__)
    is_secret = any(path[: len(prefix)] == prefix for prefix in _SECRET_PATHS)
    if is_secret or isinstance(value, dict | list) or value is None:
        return kind
    return f"{kind} {_short(json.dumps(value))}"


def _show_keys(value: dict[str, Any]) -> str:
    keys = [_short(str(key)) for key in value]
    return ("the keys " + ", ".join(keys[:10])) if keys else "no keys"


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def _usable_id(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_ID_LENGTH:
        return ""
    return value.encode("utf-8", "replace").decode()


def _usable_timeout(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 < value <= MAX_WEBHOOK_TIMEOUT_S else None
