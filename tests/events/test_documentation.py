"""The tables and the example in the documentation are those of the code."""

import base64
import json
import re
from types import ModuleType
from typing import Any, cast

import pytest

from events import errors, sources
from events.errors import DeadlineExceeded, JobError
from events.sources import SOURCES, Source, name_of
from handler import app
from handler.settings import PROJECT

CONTRACT = (PROJECT / "docs" / "contract.md").read_text()
EXTENDING = (PROJECT / "docs" / "extending.md").read_text()
ERRORS = JobError.__subclasses__()


def section(title: str) -> str:
    """The text below a heading of docs/contract.md, up to the next heading."""
    text = CONTRACT.partition(f"\n{title}\n")[2]
    assert text
    return re.split(r"^#", text, maxsplit=1, flags=re.MULTILINE)[0]


def test_table_of_errors_has_every_class() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", section("## Errors"), re.MULTILINE)

    documented = dict(rows)
    assert list(documented) == [cls.__name__ for cls in ERRORS]
    never_began = documented.pop(DeadlineExceeded.__name__)
    assert never_began == "only if the job did not start, or waited for a model"
    assert documented == {
        cls.__name__: "yes" if cls.retryable else "no"
        for cls in ERRORS
        if cls is not DeadlineExceeded
    }


def test_deadline_exceeded_is_retryable_only_if_the_job_never_began() -> None:
    assert DeadlineExceeded("", began=False).retryable
    assert not DeadlineExceeded("", began=True).retryable


def test_tree_of_errors_has_every_class() -> None:
    assert errors.__doc__
    rows = re.findall(r"[├└]── (\w+) .*?((?:not )?retryable|if the .*)$", errors.__doc__, re.M)

    assert [name for name, _ in rows] == [cls.__name__ for cls in ERRORS]
    assert {name for name, text in rows if text == "retryable"} == {
        cls.__name__ for cls in ERRORS if cls.retryable
    }


def test_every_error_has_its_class_by_type() -> None:
    assert [errors.class_of({"type": cls.__name__}) for cls in ERRORS] == ERRORS


def test_table_of_sources_has_every_module() -> None:
    rows = re.findall(r"^\| ([^|]+) \|", section("## Event sources"), re.MULTILINE)
    names = [name for row in rows[2:] for name in row.split(", ")]

    assert sorted(name.lower().replace(" ", "") for name in names) == sorted(map(name_of, SOURCES))


def test_modules_that_a_new_source_can_use_exist() -> None:
    modules = re.findall(r"^\| `(events/[\w/]+\.py)` \|", EXTENDING, re.MULTILINE)

    assert len(modules) >= 6
    assert [name for name in modules if not (PROJECT / name).is_file()] == []


@pytest.fixture
def kinesis(monkeypatch: pytest.MonkeyPatch) -> Source:
    """The source that docs/extending.md shows, in its place among the others."""
    code = re.findall(r"```python\n(.*?)```", EXTENDING, re.DOTALL)[0]
    module = ModuleType("events.kinesis")
    exec(code, module.__dict__)
    source = cast(Source, module)
    monkeypatch.setattr(sources, "SOURCES", (source, *SOURCES))
    return source


def batch(*data: bytes) -> dict[str, Any]:
    """https://docs.aws.amazon.com/lambda/latest/dg/with-kinesis.html"""
    records = [
        {
            "kinesis": {"sequenceNumber": str(number), "data": base64.b64encode(each).decode()},
            "eventSource": "aws:kinesis",
            "eventID": f"shardId-000000000006:{number}",
        }
        for number, each in enumerate(data)
    ]
    return {"Records": records}


@pytest.mark.usefixtures("kinesis")
def test_documented_source_takes_its_events() -> None:
    event = batch(b"{not json", b"{}")

    assert name_of(sources.recognize(event)) == "kinesis"
    # Both requests are refused permanently, so the stream goes on.
    assert app.lambda_handler(event, None) == {"batchItemFailures": []}


@pytest.mark.usefixtures("kinesis")
def test_documented_source_gives_back_what_failed_retryably(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COMFYUI_PORT", "wrong")
    request = json.dumps({"input": {"workflow_json": {}}}).encode()

    reply = app.lambda_handler(batch(request, request), None)

    assert reply == {"batchItemFailures": [{"itemIdentifier": "0"}]}


def test_documented_source_leaves_other_events_alone(kinesis: Source) -> None:
    values: tuple[Any, ...] = (None, 7, "text", [], {}, {"Records": 1}, {"Records": [None]})

    assert [value for value in values if kinesis.matches(value)] == []
