"""Every task says what it reads: fields that mean something and are not read are errors, others are named."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from llama_scale.errors import DataError
from llama_scale.extensions import discover
from llama_scale.extensions.examples import Column, FileTaskOptions
from llama_scale.tasks.samples import ANSWERS, CONVERSATIONS, QUERIES, SUMMARIES, TRANSLATIONS
from tests.unit.tasks.conftest import DATA, example

ROWS = {
    "sft": CONVERSATIONS[0],
    "summarization": SUMMARIES[0],
    "translation": TRANSLATIONS[0],
    "qa_generative": ANSWERS[0],
    "qa_extractive": ANSWERS[0],
    "semantic_search": QUERIES[0],
}


def options(kind: str, **given: Any) -> FileTaskOptions:
    if kind == "translation":
        given["languages"] = {"source": "en", "target": "de"}
    descriptor = importlib.import_module(f"llama_scale.tasks.{kind}").DESCRIPTOR
    found: FileTaskOptions = discover.read_options(descriptor, {"data": DATA, **given})
    return found


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weight", 0),
        ("weight", 0.5),
        ("loss", False),
        ("train", 0),
        ("label", 0),
        ("instruction", "Be kind."),
        ("history", [["a", "b"]]),
        ("chosen", "a"),
        ("images", ["a.png"]),
        ("reasoning_content", "Hm"),
        ("negatives", ["x"]),
    ],
)
def test_a_field_that_means_something_is_refused_by_name_and_row(kind: str, field: str, value: Any) -> None:
    row = example(**ROWS[kind], **{field: value})

    with pytest.raises(
        DataError, match=rf"^rows\.jsonl:7: field '{field}' \(.*\) .*, and this task does not read it; .*"
    ):
        options(kind).check_row(row)
    options(kind, ignore_fields=[field]).check_row(row)


@pytest.mark.parametrize("kind", [kind for kind in ROWS if kind != "sft"])
@pytest.mark.parametrize("field", ["system", "tools", "messages", "chat_template_kwargs"])
def test_what_belongs_to_chats_is_refused_elsewhere(kind: str, field: str) -> None:
    with pytest.raises(DataError, match=f"field '{field}'"):
        options(kind).check_row(example(**ROWS[kind], **{field: "x"}))


@pytest.mark.parametrize("kind", ROWS)
def test_what_tasks_read_is_not_named_and_the_rest_is(kind: str) -> None:
    row = example(**ROWS[kind], id=3, split="train", source_url="x", weight=1, images=None)

    options(kind).check_row(row)

    unread = {"answer_start"} if kind == "qa_generative" else set()
    assert options(kind).unread_fields(row) == {"id", "split", "source_url"} | unread
    split = {"kind": "split_field", "path": "/nowhere.jsonl"}
    assert "split" not in options(kind, data=split).unread_fields(row)
    key = {"kind": "split_shares", "path": "/nowhere.jsonl", "key": "id"}
    assert "id" not in options(kind, data=key).unread_fields(row)


def test_negatives_are_read_where_an_option_names_them() -> None:
    row = example(**QUERIES[0], negatives=["x"])

    options("semantic_search", negatives_field="negatives").check_row(row)


class PluginOptions(FileTaskOptions):
    """Options of a plugin's task as 0.1 had them."""

    def columns(self) -> tuple[Column, ...]:
        return (Column(name="text"),)


def test_tasks_of_plugins_go_on_with_rows_that_they_had() -> None:
    """A plugin may read fields that its columns do not list; they are named, not refused."""
    found = PluginOptions.model_validate({"data": DATA})
    row = example(text="a", weight=0, label="x", id=1)

    found.check_row(row)

    assert found.unread_fields(row) == {"weight", "label", "id"}
