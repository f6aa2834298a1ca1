"""The references that a template resolves by itself, and those that it leaves to the stack."""

from typing import Any

import pytest

from runtime.sam.intrinsics import NO_VALUE, Intrinsics, UnresolvableError

INTRINSICS = Intrinsics(
    parameters={"Stage": "dev", "Empty": "", "AWS::Region": "eu-west-1"},
    conditions={
        "IsDev": {"Fn::Equals": [{"Ref": "Stage"}, "dev"]},
        "IsProd": {"Fn::Not": [{"Condition": "IsDev"}]},
        "Both": {"Fn::And": [{"Condition": "IsDev"}, {"Condition": "IsProd"}]},
        "Either": {"Fn::Or": [{"Condition": "IsProd"}, {"Condition": "IsDev"}]},
        "OfTheStack": {"Fn::Equals": [{"Ref": "Table"}, "x"]},
    },
    mappings={"Sizes": {"dev": {"GiB": "8", "List": ["1", "2"]}}},
)


@pytest.mark.parametrize(
    ("value", "resolved"),
    [
        ("a text", "a text"),
        ({"HOME": "/tmp"}, {"HOME": "/tmp"}),
        ({"Ref": "Stage"}, "dev"),
        ({"Ref": "Empty"}, ""),
        ({"Ref": "AWS::NoValue"}, NO_VALUE),
        ({"Fn::Sub": "${Stage}-${ AWS::Region }${Empty}"}, "dev-eu-west-1"),
        ({"Fn::Sub": "${!Stage} $ {} $Stage"}, "${Stage} $ {} $Stage"),
        ({"Fn::Sub": ["${Stage} ${Own}", {"Own": {"Ref": "AWS::Region"}}]}, "dev eu-west-1"),
        ({"Fn::Sub": ["${Stage}", {"Stage": "own"}]}, "own"),
        ({"Fn::FindInMap": ["Sizes", {"Ref": "Stage"}, "GiB"]}, "8"),
        ({"Fn::FindInMap": ["Sizes", "dev", "List"]}, ["1", "2"]),
        ({"Fn::If": ["IsDev", "a", "b"]}, "a"),
        ({"Fn::If": ["IsProd", "a", {"Fn::If": ["IsDev", {"Ref": "Stage"}, "b"]}]}, "dev"),
        ({"Fn::If": ["Both", "a", {"Ref": "AWS::NoValue"}]}, NO_VALUE),
        ({"Fn::If": ["Either", "a", {"Ref": "Table"}]}, "a"),
    ],
)
def test_reference_inside_the_template_is_resolved(value: Any, resolved: Any) -> None:
    assert INTRINSICS.resolve(value) == resolved


@pytest.mark.parametrize(
    "value",
    [
        {"Ref": "Table"},
        {"Ref": "AWS::AccountId"},
        {"Fn::GetAtt": "Table.Arn"},
        {"Fn::ImportValue": "x"},
        {"Fn::Sub": "${Stage}-${Table}"},
        {"Fn::Sub": "${Table.Arn}"},
        {"Fn::Sub": ["${Own}", {"Own": {"Ref": "AWS::NoValue"}}]},
        {"Fn::Sub": ["only a text"]},
        {"Fn::If": ["OfTheStack", "a", "b"]},
        {"Fn::If": ["Unknown", "a", "b"]},
        {"Fn::If": ["IsDev", {"Ref": "Table"}, "b"]},
        {"Fn::FindInMap": ["Sizes", "prod", "GiB"]},
        {"Fn::FindInMap": ["Sizes", {"Ref": "Table"}, "GiB"]},
        {"Ref": ["Stage"]},
    ],
)
def test_reference_to_the_stack_is_refused(value: Any) -> None:
    with pytest.raises(UnresolvableError):
        INTRINSICS.resolve(value)
