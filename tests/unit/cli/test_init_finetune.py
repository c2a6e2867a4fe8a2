"""`init --task`: the spec validates, its numbers follow from the data, and what cannot be fine-tuned is refused at once."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llama_scale.cli.root import app
from llama_scale.errors import DataError, SpecError
from llama_scale.plan.run_plan import make_plan
from llama_scale.spec.load import load_spec
from llama_scale.spec.run import RunSpec
from tests.task_tokenizer import write_tokenizer

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 1024,
}
QUESTION, ANSWER = "Where is it?", "At 7 Tannery Lane."


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a folder that looks like a model's: `init` reads no weights."""
    folder = write_tokenizer(tmp_path / "my model")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder


def rows_of(form: str, count: int) -> list[dict[str, Any]]:
    """Return conversations in one of the three forms."""
    rows: list[dict[str, Any]] = []
    for number in range(count):
        question = f"{number}: {QUESTION}"
        rows.append(
            {
                "messages": {
                    "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": ANSWER}]
                },
                "sharegpt": {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": ANSWER}]},
                "alpaca": {"instruction": question, "input": "" if number % 2 else "now", "output": ANSWER},
            }[form]
        )
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def call_init(*words: str | Path) -> Any:
    return CliRunner().invoke(app, ["init", *map(str, words)])


def written(target: Path, *words: str | Path) -> RunSpec:
    """Return the checked spec that `init` writes."""
    result = call_init(*words, "-o", target)
    assert result.exit_code == 0, (result.exception, result.stderr)
    return load_spec(target)


@pytest.mark.parametrize("form", ["messages", "sharegpt", "alpaca"])
def test_spec_of_each_form_validates_and_starts_from_the_folders_weights(
    tmp_path: Path, model: Path, form: str
) -> None:
    data = write_rows(tmp_path / "chat.jsonl", rows_of(form, 60))

    spec = written(tmp_path / "run.yaml", "--model", model, "--task", "sft", "--adapter", "lora", "--data", data)

    assert (spec.model.kind, spec.train.from_, spec.train.epochs) == ("hf", "weights", 3)
    assert spec.tokenizer is not None and spec.tokenizer.path == str(model)
    (task,), (adapter,) = spec.tasks, spec.adapters
    assert task.options["data"]["path"] == str(data) and adapter.task == task.name == "sft"
    assert (adapter.options["rank"], adapter.options["alpha"]) == (16, 32)
    assert 1e-4 <= spec.optimizer.lr <= 2e-4 and spec.schedule.warmup_steps > 0
    assert spec.validation is not None and spec.checkpoint.every_steps is not None
    head = (tmp_path / "run.yaml").read_text().splitlines()[0].removeprefix("# Written by: ")
    assert call_init(*shlex.split(head)[2:]).stdout == (tmp_path / "run.yaml").read_text()


def test_without_an_adapter_the_whole_model_trains_at_a_lower_rate(tmp_path: Path, model: Path) -> None:
    data = write_rows(tmp_path / "chat.jsonl", rows_of("messages", 60))

    spec = written(tmp_path / "run.yaml", "--model", model, "--task", "sft", "--data", data)

    assert spec.adapters == () and spec.train.from_ == "weights"
    assert 1e-5 <= spec.optimizer.lr <= 2e-5
