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


def chat_task(path: str, **options: Any) -> dict[str, Any]:
    return {"name": "chat", "kind": "sft", "options": {"data": {"kind": "split_files", "train": path}, **options}}


def test_what_the_chat_template_passes_over_is_found_before_anything_starts(tmp_path: Path) -> None:
    called = {"name": "weather", "arguments": {"city": "X"}}
    answer = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": called}]}
    path = write(tmp_path / "a.jsonl", {"messages": [{"role": "user", "content": "Weather?"}, answer]})

    with pytest.raises(LaunchError, match=r"task 'chat': .*a\.jsonl:1: the chat template .* not write 'tool_calls' of"):
        check_inputs(spec(tmp_path, chat_task(path)))
    other = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello", "lang": "en"}]}
    path = write(tmp_path / "b.jsonl", other)
    with pytest.raises(LaunchError, match=r"b\.jsonl:1: .* not write 'lang' of message 2 .*ignore_fields: \[lang\]"):
        check_inputs(spec(tmp_path, chat_task(path)))
    check_inputs(spec(tmp_path, chat_task(path, ignore_fields=["lang"])))


def test_answers_that_the_template_does_not_show_are_found_before_anything_starts(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer", template="{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}")
    path = write(tmp_path / "a.jsonl", {"prompt": "Hi", "response": "Hello"})

    with pytest.raises(LaunchError, match=r"a\.jsonl:1: .* ignores add_generation_prompt .* writes '\[assistant\]'"):
        check_inputs(spec(tmp_path, chat_task(path)))


def test_rows_after_the_first_are_left_to_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_files, "FIRST_ROWS", 1)
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    path = write(tmp_path / "a.jsonl", {"messages": turns}, {"messages": [{**turns[0], "lang": "en"}, turns[1]]})

    check_inputs(spec(tmp_path, chat_task(path)))


def test_a_chat_needs_a_template(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer", template=None)
    path = write(tmp_path / "a.jsonl", {"prompt": "Hi", "response": "Hello"})

    with pytest.raises(LaunchError, match=r"task 'chat': the tokenizer .*tokenizer has no chat template"):
        check_inputs(spec(tmp_path, chat_task(path)))


def test_rows_that_a_resumed_run_has_prepared_are_not_checked_again(tmp_path: Path) -> None:
    """The files may have changed, and a later version may refuse what an earlier one read."""
    path = write(tmp_path / "a.jsonl", {**GOOD, "weight": 0})
    prepared = tmp_path / "examples"
    (prepared / "sum-0123456789ab" / "train").mkdir(parents=True)

    check_inputs(spec(tmp_path, summaries(path)), prepared=prepared)
    for task, validation in (({**summaries(path), "name": "s"}, False), (summaries(path), True)):
        with pytest.raises(LaunchError, match=r"a\.jsonl:1: field 'weight'"):
            check_inputs(spec(tmp_path, task, validation=validation), prepared=prepared)


def test_fields_that_are_not_read_and_answers_without_an_end_are_told_at_the_launch(tmp_path: Path) -> None:
    write_tokenizer(
        tmp_path / "tokenizer", template="{% for m in messages %}{{ m.role + ': ' + m.content }} {% endfor %}"
    )
    rows = write(tmp_path / "a.jsonl", {"prompt": "a", "response": "b", "id": 1, "u\x1brl": "x"})
    tasks = (chat_task(rows), summaries(write(tmp_path / "b.jsonl", GOOD)))

    told = list(task_files.task_notes(spec(tmp_path, *tasks)))

    assert told[0] == "task chat: fields that are not read: 'id', 'u\\x1brl'"
    assert told[1].startswith("task chat: the chat template of ") and "writes nothing behind an answer" in told[1]
    assert len(told) == 2
    write_tokenizer(tmp_path / "tokenizer")
    assert len(list(task_files.task_notes(spec(tmp_path, *tasks)))) == 1
