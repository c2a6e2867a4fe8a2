"""Rows of the task sft that cannot be used: file, line, message and remedy are named."""

from __future__ import annotations

from typing import Any

import pytest

from llama_scale.errors import DataError
from tests.unit.data.chat_templates import calls, said
from tests.unit.tasks.conftest import example
from tests.unit.tasks.test_sft_forms import HI, SHAREGPT, options


def message(**more: Any) -> dict[str, Any]:
    return {"messages": [HI[0], {"role": "assistant", "content": "Hello", **more}]}


@pytest.mark.parametrize(
    ("given", "row", "fault"),
    [
        ({}, {"text": "x"}, r"the fields 'text' are no conversation .*messages: 'messages'.*alpaca: 'instruction' and"),
        ({}, {}, "the fields none are no conversation"),
        ({}, {"messages": HI, "conversations": SHAREGPT}, "forms messages and sharegpt; say which in .* form"),
        ({}, {"messages": HI, "prompt": "a", "response": "b"}, "forms messages and pairs"),
        (
            {"form": "messages"},
            {"messages": HI, "conversations": SHAREGPT},
            r"field 'conversations' .* is a conversation",
        ),
        (
            {"form": "messages"},
            {"message": HI},
            r"no field 'messages' \(option messages_field\).*did you mean 'message'",
        ),
        ({"form": "sharegpt"}, {"conversations": None}, r"'conversations' \(option conversations_field\) is null"),
        ({}, {"messages": []}, r"'messages' is \[\], and it must be a list of messages, not empty"),
        ({}, {"messages": "Hi"}, "must be a list of messages"),
        ({}, {"messages": ["Hi"]}, "message 1 must say who speaks under 'role' or 'from', and it has \"Hi\""),
        ({}, {"messages": [HI[0], "Hello"]}, 'message 2 is "Hello", and a message must be an object'),
        ({}, {"messages": [{"speaker": "x"}]}, "it has 'speaker'; name the key in the option role_field"),
        ({}, {"messages": [{"role": "user", "from": "x"}]}, "must say who speaks under 'role' or 'from'"),
        ({"form": "messages"}, {"messages": SHAREGPT}, "message 1 must say who speaks under 'role', and it has 'from'"),
        ({"form": "sharegpt"}, {"conversations": HI}, "message 1 must say who speaks under 'from'"),
        ({}, {"messages": [HI[0], said("bot", "x")]}, r"message 2 has 'role': \"bot\", .* roles: \{bot: assistant\}"),
        ({}, {"messages": [said("human", "x")]}, r"message 1 has 'role': \"human\", .* roles: \{human: user\}"),
        (
            {},
            message(train=False),
            r"message 2 has 'train': false, and weights are read from 'weight'; set weight_field: t",
        ),
        (
            {"weight_field": "loss"},
            message(weight=0),
            "set weight_field: weight, or name it in the option ignore_fields",
        ),
        ({}, {"messages": [said(3, "x")]}, "message 1 has 'role': 3, which is no known role"),
        ({}, {"conversations": [{"from": "chatgpt", "value": "x"}]}, r"'from': \"chatgpt\", .*human, gpt, observation"),
        ({}, {"conversations": [{"from": "human", "value": 3}]}, "message 1 has 'value': 3, and it must be a text"),
        ({}, {"messages": [{"role": "user"}]}, r"message 1 \(user\) has no 'content', and nothing in its place"),
        ({}, {"messages": [said("user", None)]}, r"message 1 \(user\) has no 'content'"),
        ({}, {"messages": [{**SHAREGPT[0], "role": "user"}]}, "must say who speaks"),
        (
            {"role_field": "from"},
            {"messages": [{**SHAREGPT[0], "content": "x"}]},
            "message 1 has 'content' besides 'from' and 'value'; name it in the option ignore_fields",
        ),
        ({}, message(content=""), r"message 2 \(assistant\) is empty; remove it, or .* weight: 0"),
        ({}, message(content=" ", tool_calls=[]), r"message 2 \(assistant\) is empty"),
        ({}, message(content="", name="Bob"), r"message 2 \(assistant\) is empty"),
        ({}, message(content=[{"type": "image", "url": "x"}]), r"message 2 has a part of type \"image\" in 'content'"),
        ({}, message(content=["x"]), 'message 2 has a part of type "x"'),
        ({}, message(content={"text": "x"}), "it must be a text or a list of text parts"),
        ({}, message(weight=0.5), r"message 2 has 'weight': 0.5, and a message counts \(1\) or does not \(0\)"),
        ({}, message(weight="0"), "message 2 has 'weight': \"0\""),
        ({}, message(weight=0), "all answers have weight 0, so there is nothing to learn"),
        ({"train_on": "last"}, {"messages": [*HI, {**HI[1], "weight": 0}]}, "the last answer has weight 0"),
        ({}, {"messages": [said("user", "x", weight=1), HI[1]]}, r"message 1 \(user\) has 'weight': 1; only the"),
        (
            {},
            message(tool_calls="weather()"),
            r"message 2 \(assistant\) has 'tool_calls': \"weather\(\)\"; it must be a list",
        ),
        ({}, message(tool_calls=[{"arguments": {}}]), "has 'tool_calls'"),
        ({}, message(tool_calls=[{"function": None}]), "has 'tool_calls'"),
        ({}, {"messages": [said("user", "x", tool_calls=calls("X")), HI[1]]}, "in messages of the assistant"),
        (
            {},
            message(tool_calls=[{"name": "f", "arguments": {"d": b"x"}}]),
            "message 2 holds what JSON has no form for",
        ),
        ({}, {"conversations": [SHAREGPT[0], {"from": "function_call", "value": "weather"}]}, "must be the JSON of"),
        (
            {},
            {"conversations": [{"from": "function_call", "value": '{"name": "f", "id": 3}'}]},
            r"message 1 \(function_call\) has the key 'id'; only name and arguments are read",
        ),
        ({}, {"messages": HI[:1]}, r"has no message of role 'assistant' \(it has user\).* the option roles"),
        (
            {},
            {"messages": [said("system", "S"), *HI], "system": "T"},
            "field 'system' and the first message are both a system",
        ),
        ({}, {"messages": HI, "system": 3}, "field 'system' is 3, and it must be a text"),
        ({}, {"messages": HI, "tools": "{"}, "field 'tools' is a text that is no JSON"),
        ({}, {"messages": HI, "tools": {"name": "f"}}, "field 'tools' is .* must be a list of JSON schemas"),
        ({}, {"messages": HI, "tools": ["f"]}, "must be a list of JSON schemas"),
        ({}, {"messages": HI, "tools": [{"d": b"x"}]}, "field 'tools' holds what JSON has no form for"),
        ({}, {"messages": HI, "chat_template_kwargs": [1]}, "field 'chat_template_kwargs' is .*must be an object"),
        ({}, {"messages": HI, "weight": 0}, r"field 'weight' \(0\) says how much the row counts, .*ignore_fields"),
        ({}, {"messages": HI, "images": ["x.png"]}, r"field 'images' .* is no text"),
        ({}, {"messages": HI, "label": False}, r"field 'label' \(false\) says what is trained"),
        ({}, {"messages": HI, "history": [["a", "b"]]}, "field 'history' .* is a part of the prompt"),
        ({}, {"instruction": " ", "input": "", "output": "x"}, "fields 'instruction' and 'input' are both blank"),
        ({}, {"instruction": "x", "output": " "}, "field 'output' is \" \", and it must be a text that is not blank"),
        ({}, {"instruction": "x", "input": 3, "output": "y"}, "field 'input' is 3, and it must be a text"),
        (
            {},
            {"instruction": "x", "output": "y", "history": ["a"]},
            r"field 'history' must be a list of \[what the user",
        ),
        ({}, {"instruction": "x", "output": "y", "history": "ab"}, "field 'history' must be a list of"),
        ({}, {"prompt": "x", "response": ""}, "field 'response' is \"\""),
    ],
)
def test_faults_name_row_message_and_remedy(given: dict[str, Any], row: dict[str, Any], fault: str) -> None:
    with pytest.raises(DataError, match=f"^rows\\.jsonl:7: (.*){fault}"):
        options(**given).check_row(example(**row))
