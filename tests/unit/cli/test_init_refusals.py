"""`init --task` refuses at once what cannot be fine-tuned, and says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_scale.errors import DataError, SpecError
from tests.unit.cli.finetuning import call_init, rows_of, write_folder, write_rows


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "my model")


REFUSALS: dict[str, tuple[tuple[str, ...], int, str]] = {
    "unknown task": (("--task", "stf"), 2, "did you mean 'sft'?"),
    "unknown adapter": (("--task", "sft", "--adapter", "lorra"), 2, "did you mean 'lora'?"),
    "unknown engine": (("--engine", "megatorn"), 2, "did you mean 'megatron'?"),
    "no data": (("--task", "sft"), 2, "--data chat.jsonl"),
    "adapter alone": (("--adapter", "lora"), 2, "needs --task"),
    "data alone": (("--data", "chat.jsonl"), 2, "needs --task"),
    "adapter options alone": (("--task", "sft", "--adapter-option", "rank=4"), 2, "needs --adapter"),
    "missing file": (("--task", "sft", "--data", "no.jsonl"), 5, "no.jsonl does not exist"),
    "empty file": (("--task", "sft", "--data", "empty.jsonl"), 5, "holds no rows"),
    "no conversation": (("--task", "sft", "--data", "text.jsonl"), 5, "text.jsonl:1"),
    "no such field": (("--task", "summarization", "--data", "text.jsonl"), 5, "by --task-option NAME=VALUE"),
    "not JSON": (("--task", "sft", "--data", "options.jsonl"), 5, "each line must be one JSON object"),
    "option without value": (("--task", "sft", "--data", "chat.jsonl", "--task-option", "x"), 3, "write KEY=VALUE"),
    "unknown option": (
        ("--task", "sft", "--data", "chat.jsonl", "--task-option", "sytem=x"),
        3,
        "--task-option sytem: unknown key 'sytem'; did you mean 'system'?",
    ),
    "unknown adapter option": (
        ("--task", "sft", "--data", "chat.jsonl", "--adapter", "lora", "--adapter-option", "rnk=4"),
        3,
        "did you mean 'rank'?",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_fine_tuned_is_refused_with_the_remedy(
    tmp_path: Path, model: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "chat.jsonl", rows_of("messages", 4))
    write_rows(tmp_path / "text.jsonl", [{"text": "once", "title": "a"}])
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "options.jsonl").write_text("[1\n")
    words, status, message = REFUSALS[name]

    result = call_init("--model", model, *words, "-o", "run.yaml")

    text = str(result.exception) if result.exit_code == 1 else " ".join(result.stderr.split())
    assert message in text
    assert getattr(result.exception, "exit_code", result.exit_code) == status
    assert not (tmp_path / "run.yaml").exists()


def test_presets_have_no_weights_to_fine_tune(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "chat.jsonl", rows_of("messages", 4))

    result = call_init("--model", "llama-3.1-8b", "--task", "sft", "--adapter", "lora", "--data", data)

    assert result.exit_code == 2
    assert "meta-llama/Llama-3.1-8B" in result.stderr and "give --model its folder" in " ".join(result.stderr.split())


def test_names_of_the_hub_are_told_from_folders(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "chat.jsonl", rows_of("messages", 4))

    result = call_init("--model", "someone/a-model", "--task", "sft", "--adapter", "lora", "--data", data)

    assert result.exit_code == 2
    assert "hf download someone/a-model --local-dir a-model, then --model a-model" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("file", "error", "message"),
    [
        ("model.safetensors", SpecError, "holds no weights"),
        ("tokenizer.json", SpecError, "has no tokenizer.json"),
        ("tokenizer_config.json", DataError, "no chat template"),
    ],
)
def test_folder_without_what_a_conversation_needs(
    tmp_path: Path, model: Path, file: str, error: type[Exception], message: str
) -> None:
    data = write_rows(tmp_path / "chat.jsonl", rows_of("messages", 4))
    (model / file).unlink()

    result = call_init("--model", model, "--task", "sft", "--adapter", "lora", "--data", data)

    assert isinstance(result.exception, error)
    assert message in str(result.exception)
