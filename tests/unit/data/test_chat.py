from __future__ import annotations

import json
from pathlib import Path

import pytest

from llama_scale.data.chat import ChatTemplate
from llama_scale.data.task_tokenizer import TaskTokenizer
from llama_scale.errors import DataError

USER = [{"role": "user", "content": 'é "q"'}]


def test_special_tokens_tools_of_templates_and_named_templates(tmp_path: Path) -> None:
    source = "{{ bos_token }}{{ messages[0] | tojson }}{{ strftime_now('%Y')[:2] }}{{ eos_token }}"
    settings = {
        "bos_token": {"content": "<s>"},
        "eos_token": "</s>",
        "chat_template": [{"name": "tools", "template": "x"}, {"name": "default", "template": source}],
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))

    text = ChatTemplate(tmp_path).render(USER, add_generation_prompt=False)

    assert text == '<s>{"role": "user", "content": "é \\"q\\""}20</s>'


def test_a_file_of_its_own_counts_more(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "old"}))
    (tmp_path / "chat_template.jinja").write_text("new {{ messages[0].content }}")

    assert ChatTemplate(tmp_path).render(USER, add_generation_prompt=True) == 'new é "q"'


def test_broken_settings_are_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{")

    with pytest.raises(DataError, match=r"tokenizer_config\.json is not JSON"):
        ChatTemplate(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(DataError, match=r"tokenizer_config\.json holds list, not an object"):
        ChatTemplate(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
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
