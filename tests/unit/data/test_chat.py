from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_scale.data.chat import ChatTemplate
from llama_scale.data.task_tokenizer import TaskTokenizer
from llama_scale.errors import DataError
from tests.unit.data.chat_templates import SHAPES, WEATHER, tagged, write_chat_tokenizer

USER = [{"role": "user", "content": 'é "q"'}]

TEXT = st.text(
    st.sampled_from("ab <>&\"'\n\té𝄞|{}%") | st.characters(codec="utf-8", max_codepoint=0x2FF), max_size=12
) | (st.sampled_from(["<|im_end|>", "<think>\nx\n</think>\n\ny", "  padded  ", "{{ bos_token }}"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | TEXT, lambda x: st.lists(x, max_size=2), max_leaves=3
)
ARGUMENTS = st.dictionaries(st.sampled_from(["city", "z", "ä"]), JSON, max_size=2)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[Any] | None, dict[str, Any]]:
    """Return messages of all roles with all keys, tools, and options of the template."""
    messages = []
    for role in draw(st.lists(st.sampled_from(["system", "user", "assistant", "tool"]), min_size=1, max_size=5)):
        message: dict[str, Any] = {"role": role, "content": draw(TEXT | st.none())}
        if role == "assistant" and draw(st.booleans()):
            function = {"name": draw(TEXT), "arguments": draw(ARGUMENTS)}
            message["tool_calls"] = draw(st.sampled_from([None, [], [{"id": "abcdefghi", "function": function}]]))
        for key in draw(
            st.sets(st.sampled_from(["reasoning_content", "thinking", "reasoning", "name", "tool_call_id"]))
        ):
            message[key] = draw(TEXT | st.none())
        if message["content"] is not None and draw(st.integers(0, 5)) == 0:
            message["content"] = [{"type": "text", "text": message["content"]}]
        messages.append(message)
    tools = draw(st.sampled_from([None, None, [], [WEATHER], [WEATHER, WEATHER]]))
    return messages, tools, draw(st.sampled_from([{}, {"enable_thinking": False}, {"date_string": "today"}]))


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[TaskTokenizer, Any]]:
    from transformers import AutoTokenizer

    found = {}
    for name, template in SHAPES.items():
        folder = write_chat_tokenizer(tmp_path_factory.mktemp("shapes") / name.replace(" ", "-"), tagged(template))
        found[name] = (TaskTokenizer(folder), AutoTokenizer.from_pretrained(folder))
    return found


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(conversation=conversations(), prompt=st.booleans())
def test_templates_write_what_transformers_lets_them_write(
    tokenizers: dict[str, tuple[TaskTokenizer, Any]], shape: str, conversation: Any, prompt: bool
) -> None:
    ours, theirs = tokenizers[shape]
    messages, tools, options = conversation
    try:
        expected = theirs.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=prompt, **options
        )
    except Exception:  # a template's expressions may raise anything
        with pytest.raises(DataError, match="refuses a conversation of"):
            ours.chat(messages, tools=tools, add_generation_prompt=prompt, options=options)
        return
    assert ours.chat(messages, tools=tools, add_generation_prompt=prompt, options=options) == expected
    ids = theirs.apply_chat_template(messages, tools=tools, add_generation_prompt=prompt, **options)["input_ids"]
    assert ours.encode(expected) == ids


@pytest.mark.parametrize(
    "source",
    [
        "{{ {'b': 'é<', 'a': [1]} | tojson }} {{ [1, {'b': 2}] | tojson(indent=2) }} {{ 'é' | tojson(true) }}",
        "{{ {'b': 1, 'a': 2} | tojson(separators=(',', ':'), sort_keys=true) }} {{ strftime_now('%Y') }}",
        "{% set ns = namespace(a=1) %}{% for x in [1, 2, 3] %}{% if x == 2 %}{% continue %}{% endif %}"
        "{% set ns.a = ns.a + x %}{% endfor %}{{ ns.a }} {{ dict(a=1) }} {{ dict.fromkeys('ab', 0) }}",
        "  {% if true %}\n    kept \n  {% endif %}\n  end\n",
        "{% generation %}one{% endgeneration %}{% if bos_token is defined %}{{ bos_token }}{% endif %}{{ pad_token }}",
        "{{ messages[0] | tojson }}",
        "{% set ns = namespace(_x=1) %}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{{ dict.__class__ }}{{ dict.__base__ }}",
        "{{ messages.append(1) }}",
        "{{ range(10000000) | list | length }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ raise_exception('no') }}",
        "{{ messages[0].content + 1 }}",
        "{{ 1 / 0 }}",
    ],
)
def test_the_environment_is_that_of_transformers(tmp_path: Path, source: str) -> None:
    from transformers import AutoTokenizer

    folder = write_chat_tokenizer(tmp_path / "t", source)
    messages = [{"role": "user", "content": "é", "name": None, "reasoning": "r"}]
    try:
        expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, tokenize=False)
    except Exception as error:
        with pytest.raises(DataError) as found:
            ChatTemplate(folder).render(messages, add_generation_prompt=False)
        assert (
            isinstance(found.value.__cause__, type(error))
            or type(error).__name__ == type(found.value.__cause__).__name__
        )
        return
    assert ChatTemplate(folder).render(messages, add_generation_prompt=False) == expected


@pytest.mark.parametrize("tools", [None, [], [WEATHER]])
@pytest.mark.parametrize(
    ("setting", "files"),
    [
        ([{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}], {}),
        ({"default": "d", "tool_use": "t"}, {}),
        ([{"name": "default", "template": "d"}, {"name": "rag", "template": "r"}], {}),
        ([{"name": "rag", "template": "r"}], {}),
        ("in settings", {"chat_template.jinja": "of its own"}),
        ("in settings", {"additional_chat_templates/tool_use.jinja": "t", "chat_template.jinja": "d"}),
        ("in settings", {"additional_chat_templates/tool_use.jinja": "t"}),
        ("in settings", {"additional_chat_templates/default.jinja": "d", "chat_template.jinja": "not this"}),
    ],
)
def test_the_template_is_the_one_that_transformers_takes(
    tmp_path: Path, setting: Any, files: dict[str, str], tools: list[Any] | None
) -> None:
    from transformers import AutoTokenizer

    folder = write_chat_tokenizer(tmp_path / "t", "", chat_template=setting)
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    try:
        expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(USER, tools=tools, tokenize=False)
    except ValueError:
        with pytest.raises(DataError, match=r"has the chat templates \w+ and none called default"):
            ChatTemplate(folder).render(USER, tools=tools, add_generation_prompt=False)
        return
    assert ChatTemplate(folder).render(USER, tools=tools, add_generation_prompt=False) == expected


def test_special_tokens_may_be_objects(tmp_path: Path) -> None:
    settings = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": "{{ bos_token + eos_token }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))

    assert ChatTemplate(tmp_path).render(USER, add_generation_prompt=False) == "<s></s>"


def test_broken_settings_are_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{")

    with pytest.raises(DataError, match=r"tokenizer_config\.json is not JSON"):
        ChatTemplate(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(DataError, match=r"tokenizer_config\.json holds list, not an object"):
        ChatTemplate(tmp_path)
    for setting in ("{}", '{"chat_template": 3}', '{"chat_template": [{"name": "default"}]}'):
        (tmp_path / "tokenizer_config.json").write_text(setting)
        with pytest.raises(DataError, match="has no chat template"):
            ChatTemplate(tmp_path)


def test_sentencepiece_tokens_stand_for_characters(tokenizer: Path) -> None:
    found = TaskTokenizer(tokenizer)
    text = "The licence covers ünïcode — and  two spaces."

    ids, offsets = found.encode_with_offsets(text)

    assert ids == found.encode(text)
    assert [a for a, _ in offsets] == sorted(a for a, _ in offsets)
    assert offsets[-1][1] == len(text)
    covered = {place for a, b in offsets for place in range(a, b)}
    assert covered >= {place for place, letter in enumerate(text) if not letter.isspace()}
    assert found.decode([*found.encode("plain words"), found.eos_id]) == "plain words"
