"""A folder that looks like a model's, conversations in three forms, and `init` called on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from llama_scale.cli.root import app
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


def write_folder(folder: Path) -> Path:
    """Write a folder that looks like a model's: `init` reads no weights."""
    write_tokenizer(folder)
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
