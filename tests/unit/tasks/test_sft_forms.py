"""Rows in the forms that data sets have: what conversation each one is, and which faults are named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llama_scale.tasks.sft import SftOptions
from tests.unit.data.chat_templates import WEATHER, calls, said
from tests.unit.tasks.conftest import DATA, example

CALL = '{"name": "weather", "arguments": {"city": "X"}}'
HI = [said("user", "Hi"), said("assistant", "Hello")]
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]


def options(**given: Any) -> SftOptions:
    return SftOptions.model_validate_json(json.dumps({"data": DATA, **given}))


@pytest.mark.parametrize(
    ("given", "row", "expected"),
    [
        ({}, {"messages": HI}, HI),
        ({}, {"messages": HI, "prompt": "Hi", "id": 3}, HI),
        ({}, {"conversations": SHAREGPT}, HI),
        ({}, {"conversations": HI}, HI),
        ({}, {"messages": SHAREGPT}, HI),
        ({"form": "sharegpt"}, {"conversations": SHAREGPT, "system": ""}, HI),
        ({}, {"conversations": SHAREGPT, "system": "S"}, [said("system", "S"), *HI]),
        ({}, {"conversations": [{"from": "system", "value": "S"}, *SHAREGPT]}, [said("system", "S"), *HI]),
        ({"system": "S"}, {"conversations": SHAREGPT}, [said("system", "S"), *HI]),
        ({"system": "S"}, {"messages": [said("developer", "D"), *HI]}, [said("developer", "D"), *HI]),
        ({"system": "S"}, {"messages": HI, "system": "R"}, [said("system", "R"), *HI]),
        ({"system": "S", "ignore_fields": ["system"]}, {"messages": HI, "system": "R"}, [said("system", "S"), *HI]),
        (
            {},
            {
                "conversations": [
                    {"from": "user", "value": "Weather?"},
                    {"from": "function_call", "value": CALL},
                    {"from": "observation", "value": "12C"},
                    {"from": "assistant", "value": "12C."},
                ]
            },
            [
                said("user", "Weather?"),
                said("assistant", "", tool_calls=calls("X")),
                said("tool", "12C"),
                said("assistant", "12C."),
            ],
        ),
        (
            {},
            {
                "conversations": [
                    {"from": "human", "value": "Weather?"},
                    {
                        "from": "function_call",
                        "value": f'[{CALL}, {{"name": "w", "arguments": "{{\\"city\\": \\"Y\\"}}"}}]',
                    },
                ]
            },
            [
                said("user", "Weather?"),
                said(
                    "assistant",
                    "",
                    tool_calls=[
                        *calls("X"),
                        {"type": "function", "function": {"name": "w", "arguments": {"city": "Y"}}},
                    ],
                ),
            ],
        ),
        (
            {
                "messages_field": "dialog",
                "role_field": "speaker",
                "content_field": "text",
                "roles": {"customer": "user", "bot": "assistant"},
            },
            {"dialog": [{"speaker": "customer", "text": "Hi"}, {"speaker": "bot", "text": "Hello"}]},
            HI,
        ),
        ({"roles": {"bot": "assistant"}}, {"messages": [HI[0], said("bot", "Hello")]}, HI),
        (
            {},
            {"instruction": "Name a fruit", "input": "", "output": "apple"},
            [said("user", "Name a fruit"), said("assistant", "apple")],
        ),
        ({}, {"instruction": "Add", "input": "1 2", "output": "3"}, [said("user", "Add\n1 2"), said("assistant", "3")]),
        ({}, {"instruction": "Add", "input": None, "output": "3"}, [said("user", "Add"), said("assistant", "3")]),
        ({}, {"instruction": "Add", "output": "3"}, [said("user", "Add"), said("assistant", "3")]),
        ({}, {"instruction": "", "input": "1 2", "output": "3"}, [said("user", "1 2"), said("assistant", "3")]),
        (
            {},
            {"instruction": "C", "output": "D", "system": "S", "history": [["A", "B"]]},
            [said("system", "S"), said("user", "A"), said("assistant", "B"), said("user", "C"), said("assistant", "D")],
        ),
        (
            {"instruction_field": "q", "input_field": "more", "output_field": "a"},
            {"q": "C", "more": "c", "a": "D"},
            [said("user", "C\nc"), said("assistant", "D")],
        ),
        ({}, {"prompt": "Hi", "response": "Hello"}, HI),
        (
            {"response_field": "completion"},
            {"prompt": "Hi", "completion": "Hello", "system": "S"},
            [said("system", "S"), *HI],
        ),
        ({"form": "pairs", "ignore_fields": ["messages"]}, {"prompt": "Hi", "response": "Hello", "messages": [1]}, HI),
    ],
)
def test_rows_are_conversations(given: dict[str, Any], row: dict[str, Any], expected: list[Any]) -> None:
    found = options(**given)

    found.check_row(example(**row))

    assert list(found.conversation(example(**row)).messages) == expected


def test_keys_of_messages_are_kept_and_nulls_are_none() -> None:
    messages = [
        said("user", "Hi", name="Ada", weight=None),
        {
            "role": "assistant",
            "content": None,
            "tool_calls": calls("X", id="a"),
            "reasoning_content": "Hm",
            "name": None,
        },
        said("tool", [{"type": "text", "text": "12C"}], tool_call_id="a"),
        said("assistant", "12C", weight=1),
    ]
    row = example(messages=messages, tools=[WEATHER], chat_template_kwargs={"enable_thinking": False, "x": None})

    found = options().conversation(row)

    assert list(found.messages) == [
        said("user", "Hi", name="Ada"),
        {"role": "assistant", "tool_calls": calls("X", id="a"), "reasoning_content": "Hm"},
        said("tool", [{"type": "text", "text": "12C"}], tool_call_id="a"),
        said("assistant", "12C"),
    ]
    assert found.tools == [WEATHER]
    assert found.options == {"enable_thinking": False}


@pytest.mark.parametrize(
    ("tools", "expected"),
    [
        (None, None),
        ("", None),
        ([], []),
        ("[]", []),
        ('[{"name": "f"}]', [{"name": "f"}]),
        ([{"name": "f"}], [{"name": "f"}]),
    ],
)
def test_tools_may_be_json_in_a_text(tools: Any, expected: Any) -> None:
    assert options().conversation(example(messages=HI, tools=tools)).tools == expected


@pytest.mark.parametrize(
    ("given", "weights", "expected"),
    [
        ({}, (None, None), [1, 3]),
        ({}, (0, 1), [3]),
        ({}, (True, False), [1]),
        ({}, (1.0, 0.0), [1]),
        ({"train_on": "last"}, (None, None), [3]),
        ({"train_on": "last"}, (0, 1), [3]),
        ({"weight_field": "train"}, (0, None), [3]),
        ({"ignore_fields": ["weight"]}, (0, None), [1, 3]),
        ({"system": "S"}, (0, 1), [4]),
    ],
)
def test_weights_say_which_answers_are_trained(given: dict[str, Any], weights: Any, expected: list[int]) -> None:
    name = given.get("weight_field", "weight")
    messages = [HI[0], {**HI[1], name: weights[0]}, HI[0], {**HI[1], name: weights[1]}]

    assert options(**given).conversation(example(messages=messages)).trained == expected


def test_what_says_nothing_may_be_there_and_other_fields_are_named() -> None:
    empty = {"weight": 1, "train": True, "images": [], "history": [], "input": "", "label": None, "url": None}
    row = {"messages": HI, "id": 5, "source": "web", **empty}

    options().check_row(example(**row))

    assert options().unread_fields(example(**row)) == {"id", "source"}
    assert options(ignore_fields=["id", "input"]).unread_fields(example(**row)) == {"source"}
