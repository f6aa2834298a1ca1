"""How a message of handler/worker_protocol.py is written: a line of JSON, checked when it is read.

The key `type` has the message's name, the other keys are its fields.
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from handler.start_report import Device, FailedNode
from handler.worker_protocol import (
    DEPTHS,
    Answer,
    BenchmarkResult,
    Depth,
    ModelUrl,
    ProtocolError,
    Request,
    State,
    WorkerStatus,
)

_REQUESTS: dict[str, type[Any]] = {kind.NAME: kind for kind in get_args(Request)}
_ANSWERS: dict[str, type[Any]] = {kind.NAME: kind for kind in get_args(Answer)}
_FIELDS = {
    kind: [(each.name, each.type) for each in fields(kind)]
    for kind in (
        *_REQUESTS.values(),
        *_ANSWERS.values(),
        *(WorkerStatus, BenchmarkResult, Device, FailedNode, ModelUrl),
    )
}
_NAME_KEY = "type"


def encode(message: Request | Answer) -> bytes:
    """The line of a message, with its newline."""
    line = _ENCODER.encode({_NAME_KEY: message.NAME, **_as_json(message)})
    return line.encode() + b"\n"


def decode_request(line: bytes) -> Request:
    """The request of a line. Raises ProtocolError, which the worker answers with Refused."""
    request: Request = _decode(line, _REQUESTS)
    return request


def decode_answer(line: bytes) -> Answer:
    """The answer of a line. Raises ProtocolError."""
    answer: Answer = _decode(line, _ANSWERS)
    return answer


def readable(part: WorkerStatus | BenchmarkResult) -> str:
    """The fields as indented JSON."""
    return json.dumps(part, default=_as_json, indent=2)


def _as_json(value: Any) -> Any:
    """What `json` can write instead of a dataclass or a path."""
    if isinstance(value, Path):
        return str(value)
    parts = vars(value).items()
    return {name: part.word if isinstance(part, Depth) else part for name, part in parts}


# Made once: `json.dumps` makes one for each call with `default`.
_ENCODER = json.JSONEncoder(default=_as_json)


def _decode(line: bytes, kinds: Mapping[str, type[Any]]) -> Any:
    names = " | ".join(kinds)
    try:
        # As text: of bytes, `json` would guess the encoding first, which takes as long again.
        given = json.loads(line.decode())
        name, message_id = given[_NAME_KEY], given["id"]
    except (ValueError, TypeError, KeyError, RecursionError):
        form = f'{{"{_NAME_KEY}": {names}, "id": NUMBER, ...}}'
        text = line[:200].decode(errors="replace").strip()
        raise ProtocolError(f"{text!r} is not a message; expected {form}") from None
    if type(message_id) is not int:
        raise ProtocolError(f'"id" is {message_id!r}, expected a number')
    if not isinstance(name, str) or name not in kinds:
        raise ProtocolError(f'"{_NAME_KEY}" is {name!r}, expected {names}', message_id)
    try:
        return _read_fields(kinds[name], given)
    except ProtocolError as error:
        raise ProtocolError(f"{name}: {error}", message_id) from None


def _read_fields(kind: type[Any], given: Any) -> Any:
    if not isinstance(given, dict):
        raise ProtocolError(f"{given!r} is not an object")
    values = {}
    for name, field_kind in _FIELDS[kind]:
        if name not in given:
            raise ProtocolError(f'"{name}" is missing')
        values[name] = _read(field_kind, given[name], name)
    return kind(**values)


_PLAIN: dict[Any, tuple[type[Any], ...]] = {
    str: (str,),
    bool: (bool,),
    int: (int,),
    float: (float, int),
    int | None: (int, NoneType),
    float | None: (float, int, NoneType),
    Device | None: (NoneType,),
    BenchmarkResult | None: (NoneType,),
}
_OBJECTS: dict[Any, type[Any]] = {
    WorkerStatus: WorkerStatus,
    BenchmarkResult: BenchmarkResult,
    Device | None: Device,
    BenchmarkResult | None: BenchmarkResult,
}
_WORDS: dict[Any, Mapping[str, Any]] = {
    State: {state.value: state for state in State},
    Depth: DEPTHS,
}


def _read(kind: Any, given: Any, name: str) -> Any:
    """The value of the type `kind` that JSON gives for the field `name`."""
    if type(given) in _PLAIN.get(kind, ()):
        return given
    if kind in _WORDS and isinstance(given, str) and given in _WORDS[kind]:
        return _WORDS[kind][given]
    if kind == tuple[str, ...] and isinstance(given, list) and _are_strings(given):
        return tuple(given)
    if kind == tuple[ModelUrl, ...] and isinstance(given, list):
        return tuple(_read_fields(ModelUrl, each) for each in given)
    if isinstance(given, dict) and _are_strings(given.values()):
        if kind == dict[str, Path]:
            return {key: Path(path) for key, path in given.items()}
        if kind == dict[str, str]:
            return given
    if kind in _OBJECTS:
        return _read_fields(_OBJECTS[kind], given)
    if kind == tuple[FailedNode, ...] and isinstance(given, list):
        return tuple(_read_fields(FailedNode, each) for each in given)
    expected = " | ".join(_WORDS[kind]) if kind in _WORDS else getattr(kind, "__name__", kind)
    raise ProtocolError(f'"{name}" is {given!r}, expected {expected}')


def _are_strings(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)
