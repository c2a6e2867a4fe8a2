from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llama_scale.errors import LaunchError
from llama_scale.runs import task_files
from llama_scale.runs.preflight import check_inputs
from llama_scale.spec.run import RunSpec
from tests.engines.specs import Case
from tests.task_tokenizer import write_tokenizer


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def spec(folder: Path, *tasks: dict[str, Any], validation: bool = False, seq_length: int = 64) -> RunSpec:
    if not (folder / "tokenizer").exists():
        write_tokenizer(folder / "tokenizer")
    document = Case().spec().model_dump(by_alias=True)
    document |= {
        "model": {**document["model"], "vocab_size": 512},
        "data": {"kind": "tasks", "seq_length": seq_length},
        "tokenizer": {"kind": "hf", "path": str(folder / "tokenizer")},
        "tasks": tasks,
        "validation": {"every_steps": 5} if validation else None,
    }
    return RunSpec.model_validate(document)


def summaries(path: str, **more: Any) -> dict[str, Any]:
    data = {"kind": "split_field", "path": path}
    return {"name": "sum", "kind": "summarization", "options": {"data": data}, **more}


GOOD = {"split": "train", "document": "long", "summary": "short"}


def test_good_files_pass(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", GOOD, {**GOOD, "split": "valid"})

    check_inputs(spec(tmp_path, summaries(path), validation=True))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"split": "train", "document": "long"},
            r"task 'sum': .*a\.jsonl:2: no field 'summary' \(option summary_field\)",
        ),
        (
            {"split": "trane", "document": "a", "summary": "b"},
            r"a\.jsonl:2: field 'split' is 'trane', which is no split",
        ),
    ],
)
def test_faulty_rows_are_found_before_anything_starts(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "a.jsonl", GOOD, row)

    with pytest.raises(LaunchError, match=message):
        check_inputs(spec(tmp_path, summaries(path)))


def test_every_tasks_fault_is_named_at_once(tmp_path: Path) -> None:
    answers = write(tmp_path / "qa.jsonl", {"question": "Who?", "context": "Nobody.", "answer": "Somebody"})
    search = {"data": {"kind": "split_files", "train": answers}, "corpus": str(tmp_path / "corpus.jsonl")}
    tasks = (
        summaries(write(tmp_path / "a.jsonl", {**GOOD, "split": "valid"}), weight=2.0),
        {"name": "qa", "kind": "qa_extractive", "options": {"data": search["data"], "stride": 8}},
        {"name": "find", "kind": "semantic_search", "options": search},
    )

    with pytest.raises(LaunchError) as caught:
        check_inputs(spec(tmp_path, *tasks, seq_length=192))
    text = str(caught.value)
    assert "task 'sum': its split 'train' is empty (1 in validation); add examples" in text
    assert f"task 'qa': {answers}:1: the answer 'Somebody' is not in its context" in text
    assert f"task 'find': {tmp_path}/corpus.jsonl does not exist" in text


def test_the_validation_split_is_needed_where_it_is_used(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", GOOD)

    with pytest.raises(LaunchError, match=r"its split 'validation' is empty \(1 in train\); .* remove the section"):
        check_inputs(spec(tmp_path, summaries(path), validation=True))
    other = {**summaries(path), "name": "other", "weight": 0.0}
    write(tmp_path / "b.jsonl", GOOD, {**GOOD, "split": "dev"})
    check_inputs(spec(tmp_path, {**summaries(str(tmp_path / "b.jsonl"))}, other, validation=True))


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()

    with pytest.raises(LaunchError, match=r"its split 'train' is empty \(no rows at all\)"):
        check_inputs(spec(tmp_path, summaries(str(tmp_path / "a.jsonl"))))


def test_options_that_do_not_fit_the_rows_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"query": "q", "positive": "d"})
    task = {
        "name": "find",
        "kind": "semantic_search",
        "options": {"data": {"kind": "split_files", "train": path}},
    }

    with pytest.raises(LaunchError, match=r"task 'find': max_query_tokens=64 and 1 x max_document_tokens=192 are 256"):
        check_inputs(spec(tmp_path, task))


def test_huge_files_are_not_read_to_their_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_files, "MOST_ROWS", 3)
    path = write(tmp_path / "a.jsonl", *[{**GOOD, "split": "valid"}] * 3, {"split": "train"})

    check_inputs(spec(tmp_path, summaries(path)))
