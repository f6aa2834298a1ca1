"""A message between handler and worker: the same behind the socket, or an error that says why."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

import pytest

from handler.start_report import Device, FailedNode
from handler.worker_codec import decode_answer, decode_request, encode
from handler.worker_protocol import (
    DEPTHS,
    NO_ID,
    AnnouncePrompt,
    Answer,
    BenchmarkDone,
    Drain,
    EndJob,
    GetLog,
    GetState,
    LogLines,
    Message,
    ModelUrl,
    ProtocolError,
    Refused,
    ReportFault,
    Request,
    Restart,
    RunBenchmark,
    Sleep,
    State,
    Status,
    Wake,
    WorkerStatus,
)
from tests.worker import BENCHMARK_RESULT

READY = WorkerStatus(
    state=State.READY,
    starts=2,
    jobs=1,
    cold_start_ms=3123.4,
    failure="ComfyUI ended with signal SIGKILL.\nIts last log lines: …",
    killed_by="0b3b",
    base_url="http://127.0.0.1:18188",
    comfyui_version="0.33.0",
    comfyui_pid=4711,
    prewarmed_pid=None,
    prefetched_bytes=10**12,
    running_since=1.7e9,
    score=2.0,
    benchmark=BENCHMARK_RESULT,
    device=Device(
        kind="cuda",
        name="NVIDIA L4",
        torch="2.14.1+cu130",
        cuda="13.0",
        rocm="",
        driver="580.65.06",
        capability="8.9",
        kernels=("sm_86", "sm_90"),
        free_bytes=10**10,
        total_bytes=None,
        problem="",
    ),
    failed_nodes=(FailedNode("broken", "SyntaxError: invalid syntax"),),
    folders={"output": Path("/data/output"), "temp": Path("/data/temp")},
    unplaced_models={"vae.safetensors": "Is a directory"},
)
REQUESTS: list[Request] = [
    Wake(id=1, models=("a.safetensors", "sub/b.pt")),
    Wake(id=2, models=()),
    Wake(id=3, models=("n",), model_urls=(ModelUrl(url="https://h/n", folder="vae", name="n"),)),
    AnnouncePrompt(id=3, prompt_id="0b3b"),
    EndJob(id=4),
    EndJob(id=4, has_completed=True),
    ReportFault(id=4, job="job-1", starts=2, reason="the disk is full"),
    GetState(id=5),
    GetLog(id=6),
    *(Sleep(id=7, depth=depth) for depth in DEPTHS.values()),
    Drain(id=8),
    Restart(id=9),
    RunBenchmark(id=10),
]
ANSWERS: list[Answer] = [
    Status(id=1, is_final=False, worker=READY),
    Status(id=1, is_final=True, worker=replace(READY, score=None, benchmark=None)),
    LogLines(id=2, lines=("one", "two\nand a half")),
    BenchmarkDone(id=2, result=BENCHMARK_RESULT),
    Refused(id=3, reason="a job runs"),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: request.NAME)
def test_request_is_the_same_behind_the_socket(request_: Request) -> None:
    assert decode_request(encode(request_)) == request_


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer.NAME)
def test_answer_is_the_same_behind_the_socket(answer: Answer) -> None:
    assert decode_answer(encode(answer)) == answer


@pytest.mark.parametrize("message", [*REQUESTS, *ANSWERS], ids=lambda message: message.NAME)
def test_message_is_one_line(message: Request | Answer) -> None:
    assert encode(message).count(b"\n") == 1


def test_every_message_is_a_request_or_an_answer_and_is_tested_here() -> None:
    kinds = set(Message.__subclasses__())

    assert set(get_args(Request | Answer)) == kinds
    assert {type(message) for message in [*REQUESTS, *ANSWERS]} == kinds
    assert len({kind.NAME for kind in kinds}) == len(kinds)


@pytest.mark.parametrize("state", State)
def test_every_state_crosses_the_socket(state: State) -> None:
    assert decode_answer(status_line(state=state.value)).worker.state is state  # type: ignore[union-attr]


def status_line(**changes: object) -> bytes:
    """The line of a Status in which the worker's fields are changed to these."""
    line = json.loads(encode(Status(id=1, is_final=True, worker=READY)))
    line["worker"] |= changes
    return json.dumps(line).encode()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"type": "dance", "id": 7}', "\"type\" is 'dance', expected wake | announce_prompt |"),
        (b'{"type": ["wake"], "id": 7}', "expected wake | announce_prompt |"),
        (b'{"type": "status", "id": 7}', "\"type\" is 'status', expected wake"),
        (b'{"type": "sleep", "id": 7}', 'sleep: "depth" is missing'),
        (b'{"type": "sleep", "id": 7, "depth": "coma"}', "expected free | stop | exit"),
        (b'{"type": "sleep", "id": 7, "depth": "awake"}', "expected free | stop | exit"),
        (b'{"type": "sleep", "id": 7, "depth": 2}', "expected free | stop | exit"),
        (b'{"type": "wake", "id": 7, "models": "a.pt"}', "\"models\" is 'a.pt', expected"),
        (b'{"type": "wake", "id": 7, "models": [1]}', '"models" is [1], expected'),
        (b'{"type": "announce_prompt", "id": 7, "prompt_id": null}', "is None, expected str"),
    ],
)
def test_request_that_is_not_known_is_an_error_with_its_id(line: bytes, words: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_request(line)

    assert words in str(caught.value)
    assert caught.value.message_id == 7


@pytest.mark.parametrize(
    "line",
    [
        b"garbage",
        b"\xff\xfe",
        b"",
        b"[]",
        b"null",
        b'"type"',
        b'{"id": 1}',
        b'{"type": "wake"}',
        b'{"type": "wake", "id": "1"}',
        b'{"type": "wake", "id": true}',
        b"[" * 100_000,
    ],
)
@pytest.mark.parametrize("decode", [decode_request, decode_answer])
def test_line_without_a_readable_id_is_an_error(
    line: bytes, decode: Callable[[bytes], object]
) -> None:
    with pytest.raises(ProtocolError, match="expected") as caught:
        decode(line)

    assert caught.value.message_id == NO_ID


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            status_line(state="dozing"),
            "\"state\" is 'dozing', expected starting | benchmarking | ready |",
        ),
        (status_line(state=None), '"state" is None, expected starting | benchmarking | ready |'),
        (status_line(starts="2"), "\"starts\" is '2', expected int"),
        (status_line(jobs=True), '"jobs" is True, expected int'),
        (status_line(comfyui_pid=1.5), '"comfyui_pid" is 1.5, expected int | None'),
        (status_line(folders={"output": 1}), '"folders" is'),
        (b'{"type": "status", "id": 1, "is_final": true, "worker": []}', "[] is not an object"),
        (b'{"type": "wake", "id": 1}', "expected status | benchmark_done | log_lines | refused"),
    ],
)
def test_answer_that_is_not_known_is_an_error(line: bytes, words: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_answer(line)

    assert words in str(caught.value)


@pytest.mark.parametrize("field", [field.name for field in fields(WorkerStatus)])
def test_answer_without_a_field_names_it(field: str) -> None:
    line = json.loads(status_line())
    del line["worker"][field]

    with pytest.raises(ProtocolError, match=f'status: "{field}" is missing'):
        decode_answer(json.dumps(line).encode())
