"""A run on a SentencePiece model: its loss and its answers are those of transformers, which sees the export alone.

Neither the ids nor the model come from here: transformers cuts the same rows with the exported tokenizer, BOS before
the prompts, none but the template's own before the conversations, EOS as a token that is trained.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from llama_scale.data.documents import find_source
from llama_scale.data.sentencepiece_training import train_sentencepiece
from llama_scale.resources import data_dir
from tests.engines.run_folders import SPEC, metrics
from tests.engines.test_sft import cli

LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
COLOURS = {"color of sky": "blue", "color of grass": "green", "color of snow": "white", "color of coal": "black"}
PROMPT = "Question: {}\nAnswer:"


def loss_of(model: Any, rows: list[tuple[list[int], int]]) -> float:
    """Return the mean loss over the tokens behind each row's first ones."""
    total, count = 0.0, 0
    for ids, given in rows:
        labels = torch.tensor([[-100] * given + ids[given:]])
        with torch.no_grad():
            total += float(model(torch.tensor([ids]), labels=labels).loss) * (len(ids) - given)
        count += len(ids) - given
    return total / count


@pytest.mark.engines
def test_loss_and_answers_are_those_of_transformers_on_the_export(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = find_source([str(data_dir("configs") / "smoke" / "sample.jsonl.gz")])
    model = train_sentencepiece(text, tmp_path / "tok", vocab_size=600)
    settings = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "chat_template": LLAMA2}
    (model.parent / "tokenizer_config.json").write_text(json.dumps(settings))
    chats = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in COLOURS.items()]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    rows = [json.dumps({"question": question, "answer": answer}) for question, answer in COLOURS.items()]
    (tmp_path / "qa.jsonl").write_text("\n".join(rows) + "\n")
    qa = {"template": PROMPT.format("{question}"), "data": {"kind": "split_files", "train": "qa.jsonl"}}
    spec = {
        **SPEC,
        "model": {**SPEC["model"], "vocab_size": 600},
        "tokenizer": {"kind": "sentencepiece", "path": str(model)},
        "data": {"kind": "tasks", "seq_length": 64, "packing": False},
        "tasks": [
            {"name": "chat", "kind": "sft", "options": {"data": {"kind": "split_files", "train": "chat.jsonl"}}},
            {"name": "qa", "kind": "qa_generative", "options": qa},
        ],
        "train": {"steps": 1},
        "optimizer": {"lr": 1e-30},  # the exported weights are those of the loss
        "batch": {"global": 8, "micro": 1},
        "engine": {"kind": "ddp"},
        "parallel": {},
        "cluster": {"device": "cpu", "devices_per_node": 1},
        "launcher": {"kind": "local", "threads_per_process": 1},
    }
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))

    launched = cli(tmp_path, "launch", "spec.yaml")
    assert launched.returncode == 0, launched.stderr
    run = Path(launched.stdout.strip().splitlines()[-1])
    exported = cli(tmp_path, "convert", "export", "--from", str(run), "--to", "hf", "--no-verify")
    assert exported.returncode == 0, exported.stderr
    prompt = PROMPT.format("color of sky")
    asked = cli(tmp_path, "generate", str(run), "--prompt", prompt, "--max-new-tokens", "6", "--json")
    assert asked.returncode == 0, asked.stderr

    judge = AutoTokenizer.from_pretrained(tmp_path / "hf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    end = judge.convert_tokens_to_ids("</s>")
    prompted = []
    for question, answer in COLOURS.items():
        given = judge(PROMPT.format(question))["input_ids"]
        prompted.append(([*judge(f"{PROMPT.format(question)} {answer}")["input_ids"], end], len(given)))
    assert all(ids[0] == judge.bos_token_id and ids.count(judge.bos_token_id) == 1 for ids, _ in prompted)
    spoken = []
    for chat in chats:
        given = judge.apply_chat_template(chat[:1], add_generation_prompt=True, return_dict=False)
        spoken.append((judge.apply_chat_template(chat, return_dict=False), len(given)))
    assert all(ids[-1] == end for ids, _ in spoken)
    losses = metrics(run)[0]
    assert losses["task_losses"]["qa"] == pytest.approx(loss_of(theirs, prompted), rel=1e-5)
    assert losses["task_losses"]["chat"] == pytest.approx(loss_of(theirs, spoken), rel=1e-5)
    ids = judge(prompt, return_tensors="pt")["input_ids"]
    answer = theirs.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :].tolist()
    found = json.loads(asked.stdout)[0]["tokens"]
    assert list(found) == (answer[: answer.index(end)] if end in answer else answer)
