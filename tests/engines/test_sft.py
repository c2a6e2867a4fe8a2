"""A run of the task sft from the command line on rows of every form: its loss is transformers' own of these rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.engines.run_folders import SPEC, metrics
from tests.live_runs import environment
from tests.unit.data.chat_templates import SHAPES, WEATHER, calls, plain, said, tagged, write_chat_tokenizer

TOOL_CHAT = [
    said("system", "Be brief."),
    said("user", "Weather in X?"),
    said("assistant", "Let me see.", tool_calls=calls("X")),
    said("tool", "12C"),
    said("assistant", "It is 12C."),
]
ROWS: list[dict[str, Any]] = [
    {"messages": TOOL_CHAT, "tools": [WEATHER], "id": 1},
    {"messages": [said("user", "a"), said("assistant", "bad", weight=0), said("user", "b"), said("assistant", "good")]},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "system": "S"},
    {"instruction": "Add", "input": "1 2", "output": "3"},
    {"instruction": "Name a fruit", "input": "", "output": "apple"},
    {"prompt": "Who?", "response": "Nobody"},
]
CHATS: list[tuple[list[dict[str, Any]], list[Any] | None, set[int]]] = [
    (TOOL_CHAT, [WEATHER], {0, 1}),
    ([said("user", "a"), said("assistant", "bad"), said("user", "b"), said("assistant", "good")], None, {1}),
    ([said("system", "S"), said("user", "Hi"), said("assistant", "Hello")], None, {0}),
    ([said("user", "Add\n1 2"), said("assistant", "3")], None, {0}),
    ([said("user", "Name a fruit"), said("assistant", "apple")], None, {0}),
    ([said("user", "Who?"), said("assistant", "Nobody")], None, {0}),
]
"""The rows as transformers' messages, their tools, and which of the assistant's turns are trained."""


def cli(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llama_scale", *arguments],
        cwd=folder,
        env=environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=120,
    )


def their_loss(folder: Path, tokenizer: Path) -> float:
    """Return the mean loss of an exported model over the trained tokens of all rows, each row by itself."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    reader = AutoTokenizer.from_pretrained(tokenizer)
    total, count = 0.0, 0
    for messages, tools, trained in CHATS:
        found = reader.apply_chat_template(messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True)
        ids, mask = torch.tensor([found["input_ids"]]), torch.tensor(found["assistant_masks"])
        begins = torch.diff(mask, prepend=torch.tensor([0])) == 1
        turns = torch.cumsum(begins, 0) - 1
        counted = (mask == 1) & torch.isin(turns, torch.tensor(sorted(trained)))
        labels = torch.where(counted, ids[0], -100)[None]
        with torch.no_grad():
            total += float(model(ids, labels=labels).loss) * int(counted.sum())
        count += int(counted.sum())
    return total / count


@pytest.mark.engines
def test_the_loss_of_rows_of_every_form_is_transformers(tmp_path: Path) -> None:
    template = SHAPES["tagged calls"]
    write_chat_tokenizer(tmp_path / "tokenizer", plain(template))
    (tmp_path / "rows.json").write_text(json.dumps(ROWS, indent=1))
    options = {"data": {"kind": "split_files", "train": "rows.json"}}
    spec = {
        **SPEC,
        "model": {**SPEC["model"], "vocab_size": 512, "max_position_embeddings": 512},
        "tokenizer": {"kind": "hf", "path": "tokenizer"},
        "data": {"kind": "tasks", "seq_length": 512, "packing": False},
        "tasks": [{"name": "chat", "kind": "sft", "options": options}],
        "train": {"steps": 1},
        "optimizer": {"lr": 1e-30},  # the exported weights are those of the loss
        "batch": {"global": len(ROWS), "micro": 1},
        "parallel": {"tensor": 2},
        "cluster": {"device": "cpu", "devices_per_node": 2},
        "launcher": {"kind": "local", "threads_per_process": 1},
    }
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))

    launched = cli(tmp_path, "launch", "spec.yaml")
    assert launched.returncode == 0, launched.stderr
    run = Path(launched.stdout.strip().splitlines()[-1])
    exported = cli(tmp_path, "convert", "export", "--from", str(run), "--to", "hf")
    assert exported.returncode == 0, exported.stderr

    assert "note: task chat: fields that are not read: 'id'" in launched.stderr
    [record] = (run / "examples").rglob("record.json")
    assert json.loads(record.read_text())["unread"] == ["id"]
    expected = their_loss(tmp_path / "hf", write_chat_tokenizer(tmp_path / "tagged", tagged(template)))
    assert metrics(run)[0]["loss"] == pytest.approx(expected, rel=1e-5)
