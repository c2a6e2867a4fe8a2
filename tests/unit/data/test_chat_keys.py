"""Nothing that a row says is lost because a chat template passes over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llama_scale.data.chat import ChatTemplate
from llama_scale.data.chat_keys import WrittenKeys
from llama_scale.errors import DataError
from tests.unit.data.chat_templates import SHAPES, WEATHER, calls, plain, said, write_chat_tokenizer

HI = [said("user", "Hi"), said("assistant", "Hello")]
ASKED = said("user", "Weather?")
CALLED = said("assistant", "", tool_calls=calls("X"))
TOLD = [said("tool", "12C"), said("assistant", "It is 12C.")]
OTHER_CITY = [WEATHER, {**WEATHER, "function": {**WEATHER["function"], "name": "time"}}]
FIRST_TOOL = "{{ tools[0] | tojson if tools }}" + SHAPES["chatml"]
FIRST_CALL = (
    "{% for m in messages %}{{ m.role + m.content }}{% if m.tool_calls %}{{ m.tool_calls[0] | tojson }}{% endif %}"
    "{% endfor %}"
)
NAMES = (
    "{% for m in messages %}{{ m.role + m.content }}{% for c in m.tool_calls %}{{ c.function.name }}{% endfor %}"
    "{% endfor %}"
)
NO_SYSTEM = "{% for m in messages %}{% if m.role != 'system' %}{{ m.role + m.content }}{% endif %}{% endfor %}"
FIRST_SYSTEM = "{{ messages[0].content }}" + NO_SYSTEM
LETTERS = "{% for m in messages %}{{ m.role }}{% for x in m.content %}{{ x.text }}{% endfor %}{% endfor %}"
PARTS = "{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}"


def keys(folder: Path, template: str) -> WrittenKeys:
    return WrittenKeys(ChatTemplate(write_chat_tokenizer(folder / "t", plain(template))))


@pytest.mark.parametrize(
    ("template", "messages", "more", "fault"),
    [
        (
            SHAPES["chatml"],
            HI,
            {"tools": [WEATHER]},
            r"not write 'tools' of the row, or not all of it, .*ignore_fields: \[tools\]",
        ),
        (FIRST_TOOL, HI, {"tools": OTHER_CITY}, "not write 'tools' of the row"),
        (
            SHAPES["chatml"],
            [ASKED, CALLED, {**TOLD[0], "tool_call_id": "a"}],
            {"tools": [WEATHER]},
            r"'tools' of the row and 'tool_calls' of message 2 .*ignore_fields: \[tools, tool_calls, tool_call_id\]",
        ),
        (SHAPES["chatml"], [ASKED, CALLED, *TOLD], {}, r"'tool_calls' of message 2 \(assistant\), .*\[tool_calls\]"),
        (
            FIRST_CALL,
            [ASKED, {**CALLED, "tool_calls": calls("X", "Y")}],
            {},
            "'tool_calls' of message 2 .*not all of it",
        ),
        (NAMES, [ASKED, CALLED], {}, "'tool_calls' of message 2 .*not all of it"),
        (
            SHAPES["llama tools"],
            [ASKED, {**CALLED, "content": "Let me see."}],
            {},
            r"'content' of message 2 \(assistant, with 'tool_calls'\)",
        ),
        (
            SHAPES["tagged calls"],
            [ASKED, CALLED, {**TOLD[0], "tool_call_id": "a", "name": "w"}],
            {},
            r"'tool_call_id', 'name' of message 3 \(tool, with 'content'\)",
        ),
        (SHAPES["chatml"], [HI[0], {**HI[1], "reasoning_content": "Hm"}], {}, r"'reasoning_content' of message 2"),
        (SHAPES["macros"], [HI[0], {**HI[1], "reasoning": "a", "thinking": "b"}], {}, "'thinking' of message 2"),
        (SHAPES["chatml"], [{**HI[0], "name": "Ada"}, HI[1]], {}, "'name' of message 1"),
        (SHAPES["chatml"], [HI[0], {**HI[1], "prefix": True}], {}, "'prefix' of message 2"),
        (SHAPES["chatml"], [HI[0], {**HI[1], "unheard_of": {"a": 1}}], {}, "'unheard_of' of message 2"),
        (
            SHAPES["brackets"],
            [said("system", "Be brief."), *HI],
            {},
            r"'content' of message 1 \(system\), or not all of it, so that it would be lost; remove it, or use",
        ),
        (SHAPES["bracket tools"], [said("system", "S"), *HI], {}, r"'content' of message 1 \(system\)"),
        (NO_SYSTEM, [said("system", "Hi"), *HI], {}, r"'content' of message 1 \(system\)"),
        (FIRST_SYSTEM, [said("system", "S"), *HI, said("system", "e")], {}, r"'content' of message 4 \(system\)"),
        (LETTERS, HI, {}, r"'content' of message 1 \(user\)"),
        (PARTS, [said("user", [{"type": "text", "text": "Hi"}]), HI[1]], {}, "the content of message 1 .* Python list"),
        (SHAPES["chatml"], HI, {"options": {"enable_thinking": True}}, "reads no variable 'enable_thinking'"),
        (SHAPES["chatml"], HI, {"options": {"messages": []}}, "reads no variable 'messages'"),
    ],
)
def test_what_a_template_passes_over_is_named(
    tmp_path: Path, template: str, messages: list[Any], more: dict[str, Any], fault: str
) -> None:
    checked = keys(tmp_path, template)

    for _ in range(2):  # what was found of one row does not hide it in the next
        with pytest.raises(DataError, match=fault):
            checked.check(messages, **more)


@pytest.mark.parametrize(
    ("shape", "messages", "more"),
    [
        ("chatml", HI, {"tools": []}),
        ("chatml", [said("system", " "), {**HI[0], "name": ""}, {**HI[1], "tool_calls": []}], {}),
        ("llama tools", [ASKED, CALLED, *TOLD], {"tools": OTHER_CITY, "options": {"date_string": "today"}}),
        ("bracket tools", [ASKED, {**CALLED, "tool_calls": calls("X", "Y", id="abcdefghi")}], {}),
        (
            "bracket tools",
            [
                ASKED,
                {**CALLED, "tool_calls": calls("X", id="abcdefghi")},
                {**TOLD[0], "tool_call_id": "abcdefghi"},
                TOLD[1],
            ],
            {"tools": [WEATHER]},
        ),
        ("tagged calls", [ASKED, {**CALLED, "content": "Let me see."}, *TOLD, *HI], {"tools": OTHER_CITY}),
        ("dropped reasoning", [HI[0], {**HI[1], "reasoning_content": "a"}, HI[0], {**HI[1], "thinking": "b"}], {}),
        ("dropped reasoning", HI, {"options": {"enable_thinking": True}}),
        (
            "macros",
            [
                {**HI[0], "name": "Ada"},
                said("assistant", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
            ],
            {},
        ),
    ],
)
def test_what_a_template_writes_passes(tmp_path: Path, shape: str, messages: list[Any], more: dict[str, Any]) -> None:
    checked = keys(tmp_path, SHAPES[shape])

    for _ in range(2):
        checked.check(messages, **more)


def test_rows_after_the_first_of_their_kind_are_still_looked_at(tmp_path: Path) -> None:
    """A template that loses contents by what they hold."""
    checked = keys(
        tmp_path,
        "{% for m in messages %}{{ m.role }}{% if 'secret' not in m.content %}{{ m.content }}{% endif %}{% endfor %}",
    )
    checked.check(HI)

    with pytest.raises(DataError, match=r"'content' of message 2 \(assistant\)"):
        checked.check([HI[0], said("assistant", "a secret")])
