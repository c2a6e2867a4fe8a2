"""A tokenizer with ids that the model lacks is refused as soon as its file can be read."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, LlamaConfig

from llama_scale.spec.hf_tokenizer import NAMES, largest_token, read_special_tokens, token_ids
from llama_scale.spec.load import check_text
from llama_scale.spec.quick import quick_check
from tests.properties import examples
from tests.unit.spec.documents import INLINE, document


def write(folder: Path, content: Any) -> Path:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("content", "largest"),
    [
        ({"model": {"type": "BPE", "vocab": {"a": 0, "b": 7}}}, ("b", 7)),
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0], ["b", -1.0]]}}, ("b", 1)),
        ({"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 9, "content": "<s>"}, {"content": "x"}]}, ("<s>", 9)),
        ({"model": {"vocab": []}}, None),
        ({"model": 3, "added_tokens": {"id": 4}}, None),
        ([], None),
        ("{", None),
        ("[" * 100_000, None),
    ],
)
def test_largest_token_of_every_form_and_none_where_it_cannot_be_told(
    tmp_path: Path, content: Any, largest: tuple[str, int] | None
) -> None:
    assert largest_token(write(tmp_path, content), settings=False) == largest


def test_largest_token_of_a_folder_without_the_file_is_none(tmp_path: Path) -> None:
    assert largest_token(tmp_path, settings=True) is None
    assert largest_token(tmp_path / "gone", settings=True) is None


def test_validate_refuses_ids_beyond_the_models_vocabulary(tmp_path: Path) -> None:
    write(tmp_path, {"model": {"vocab": {"a": 0, "b": 100}}})
    spec = document(model=INLINE, tokenizer={"kind": "hf", "path": "."})
    text = json.dumps(spec)
    assert quick_check(text) is None
    (problem,) = check_text(text, name="f", folder=str(tmp_path), env={}).problems
    assert (problem.dotted, problem.code) == ("tokenizer.path", "tokenizer-vocabulary")
    assert f"the largest token id of {tmp_path} is 100 ('b'), and the model knows the ids below vocab_size=100" in str(
        problem
    )
    assert problem.hint.startswith("use a vocab_size of at least 101")
    spec["model"] = {**INLINE, "vocab_size": 101}
    assert check_text(json.dumps(spec), name="f", folder=str(tmp_path), env={}).spec is not None


def test_tokens_that_only_the_settings_add_count_for_new_specs(tmp_path: Path) -> None:
    write(tmp_path, {"model": {"vocab": {"a": 0, "b": 60}}, "added_tokens": [{"id": 61, "content": "<s>"}]})
    spec = document(model={**INLINE, "vocab_size": 62}, tokenizer={"kind": "hf", "path": "."})

    def problems(*, stored: bool = False, **settings: Any) -> list[str]:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<pad>", **settings}))
        return [
            str(problem)
            for problem in check_text(json.dumps(spec), name="f", folder=str(tmp_path), env={}, stored=stored).problems
        ]

    assert problems(bos_token="<s>") == []
    (problem,) = problems(bos_token="<s>", additional_special_tokens=["<s>", "<|im_start|>"])
    assert "is 63 ('<|im_start|>'), and the model knows the ids below vocab_size=62" in problem
    assert problems(additional_special_tokens=["<|im_start|>"], stored=True) == []


def test_a_vocabulary_size_with_a_fault_is_not_compared(tmp_path: Path) -> None:
    write(tmp_path, {"model": {"vocab": {"a": 100}}})
    spec = document(model={**INLINE, "vocab_size": "many"}, tokenizer={"kind": "hf", "path": "."})
    problems = check_text(json.dumps(spec), name="f", folder=str(tmp_path), env={}).problems
    assert [problem.dotted for problem in problems] == ["model.vocab_size"]


TOKENS = st.sampled_from(["a", "<s>", "</s>", "<new>", "<other>", "<pad>"])
"""In the vocabulary, added by tokenizer.json, and in neither."""
SAID = TOKENS | TOKENS.map(lambda token: {"__type": "AddedToken", "content": token, "lstrip": False})
NAMED = st.dictionaries(st.sampled_from(NAMES), SAID | st.none(), max_size=4)
MORE = st.fixed_dictionaries(
    {},
    optional={
        "additional_special_tokens": st.lists(TOKENS, unique=True, max_size=3),
        "extra_special_tokens": st.lists(TOKENS, unique=True, max_size=2),
        "image_token": TOKENS,
        "added_tokens_decoder": st.sampled_from(
            [{}, {"3": {"content": "<s>", "special": True}}, {"5": {"content": "<tool>"}, "4": {"content": "</s>"}}]
        ),
    },
)
OLDER = st.dictionaries(
    st.sampled_from(NAMES[:5]), TOKENS | TOKENS.map(lambda token: {"content": token, "lstrip": False}), max_size=3
)


@examples(150)
@given(named=NAMED, more=MORE, older=st.none() | OLDER, added=st.sampled_from([None, {}, {"<tool>": 5}, {"a": 0}]))
def test_special_tokens_and_ids_are_those_of_transformers(
    named: dict[str, Any], more: dict[str, Any], older: dict[str, Any] | None, added: dict[str, int] | None
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
        made.add_special_tokens(["<s>", "</s>"])
        made.save(str(folder / "tokenizer.json"))
        content = {**named, **more, "tokenizer_class": "PreTrainedTokenizerFast"}
        files = {"tokenizer_config": content, "special_tokens_map": older, "added_tokens": added}
        for file, value in files.items():
            if value is not None:
                (folder / f"{file}.json").write_text(json.dumps(value))
        judge = AutoTokenizer.from_pretrained(folder, config=LlamaConfig())

        assert read_special_tokens(folder).named == judge.special_tokens_map
        assert token_ids(folder) == judge.get_vocab()
        known = {token: number for token, number in judge.get_vocab().items() if token != judge.pad_token or number < 5}
        assert largest_token(folder, settings=True) == max(known.items(), key=lambda row: row[1])
