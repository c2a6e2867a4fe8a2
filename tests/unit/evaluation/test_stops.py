"""`eval`, `generate`, `generate --chat` and transformers with the exported folder end a text at the same tokens.

The model is rigged: its last token alone decides which one follows, so that it writes a given token at a given place.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from llama_scale.cli.eval import app as eval_app
from llama_scale.cli.generate import app as generate_app
from llama_scale.convert.export_hf import export_hf
from llama_scale.convert.import_hf import import_hf
from llama_scale.convert.shards import Layout
from llama_scale.evaluation.assembled import AssembledModel
from tests.unit.convert.lines import CHAT, OTHER, SPECIAL, TEXT_END, TURN_END, VOCAB, make_run, write_folder

UNION = {9: "the origin's config", OTHER: "its generation_config", TEXT_END: "the tokenizer", TURN_END: "trained turns"}
WORD = 68
"""An id of a letter, as the next one is."""
PENALTIES = {"repetition_penalty": 5.0, "min_new_tokens": 9, "suppress_tokens": [WORD], "do_sample": True, "top_k": 3}
"""Sampling settings of an origin: not for the greedy decoding that `generate` and `eval` promise."""


def chat_prompt(tokenizer: Any, text: str) -> list[int]:
    messages = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def rigged_run(folder: Path, stop: int, *, chat: bool = True, **options: str) -> Path:
    """Make a fully fine-tuned run whose model answers WORD, WORD + 1 and a token, and then goes on."""
    write_folder(folder / "probe")
    tokenizer = AutoTokenizer.from_pretrained(folder / "probe")
    end_of_prompt = (chat_prompt(tokenizer, "x") if chat else tokenizer("x").input_ids)[-1]
    source = write_folder(
        folder / "source",
        config={"eos_token_id": 9},
        generation={"eos_token_id": [9, OTHER], **PENALTIES},
        following={end_of_prompt: WORD, WORD + 1: stop},
    )
    import_hf(source, folder / "ck", layout=Layout())
    (folder / "rows.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}) + "\n"
    )
    data = {"kind": "split_files", "train": str(folder / "rows.jsonl"), "test": str(folder / "rows.jsonl")}
    task = CHAT | {"options": {"data": data, "max_new_tokens": 6, **options}}
    make_run(folder / "run", folder / "ck", init_from=folder / "ck", tokenizer=source, tasks=(task,))
    return folder / "run"


def call(app: Any, *arguments: str | Path) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


@pytest.mark.parametrize("stop", [*UNION, WORD + 50])
def test_a_text_ends_where_transformers_ends_it(tmp_path, stop):
    run = rigged_run(tmp_path, stop)
    call(eval_app, run, "--predictions", tmp_path / "said.jsonl", "--resamples", "100")
    (said,) = json.loads(call(generate_app, run, "--prompt", "x", "--chat", "--max-new-tokens", "6", "--json"))
    export_hf(run / "checkpoints" / "step-00000001", tmp_path / "out")

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, neutral in (("do_sample", False), ("repetition_penalty", 1.0), ("min_new_tokens", 0)):
        setattr(model.generation_config, name, neutral)
    model.generation_config.suppress_tokens = None
    prompt = torch.tensor([chat_prompt(tokenizer, "x")])
    theirs = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6)[0, prompt.shape[1] :]

    expected = [WORD, WORD + 1, stop] if stop in UNION else [WORD, WORD + 1, *range(stop, stop + 4)]
    assert theirs.tolist() == expected
    new = [token for token in expected if token not in UNION]
    assert said["tokens"] == new
    assert json.loads((tmp_path / "said.jsonl").read_text())["prediction"] == tokenizer.decode(new).strip()


def test_a_conversation_is_asked_with_the_system_message_that_was_trained(tmp_path, monkeypatch):
    run = rigged_run(tmp_path, TURN_END, system="Be brief.")
    asked = []
    generate = AssembledModel.generate

    def recorded(self, prompts, **settings):
        asked.extend(prompts)
        return generate(self, prompts, **settings)

    monkeypatch.setattr(AssembledModel, "generate", recorded)
    call(generate_app, run, "--prompt", "x", "--chat")
    call(generate_app, run, "--prompt", "x", "--chat", "--system", "Be long.")

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "source")
    turns = [[{"role": "system", "content": s}, {"role": "user", "content": "x"}] for s in ("Be brief.", "Be long.")]
    assert asked == [tokenizer.apply_chat_template(t, add_generation_prompt=True, return_dict=False) for t in turns]
    refused = CliRunner().invoke(generate_app, [str(run), "--prompt", "x", "--system", "s"])
    assert "goes with --chat" in str(refused.exception)


def test_a_text_without_a_template_ends_there_too(tmp_path):
    run = rigged_run(tmp_path, TURN_END, chat=False)
    (said,) = json.loads(call(generate_app, run, "--prompt", "x", "--json"))
    assert (said["tokens"], said["text"]) == ([WORD, WORD + 1], "ab")


@pytest.mark.parametrize("change", ["made by version 0.1", "of other weights"])
def test_an_outdated_folder_is_made_anew(tmp_path, change):
    run = rigged_run(tmp_path, OTHER)
    command = [run, "--prompt", "x", "--chat", "--max-new-tokens", "6", "--json"]
    before = json.loads(call(generate_app, *command))
    folder = run / "assembled" / "step-00000001"
    report = json.loads((folder / "report.json").read_text())
    if change == "of other weights":
        report["parameter_digest"] = "0" * 32
    else:  # which had no stop tokens in its report, and lost those of the origin
        del report["stop_ids"]
    (folder / "report.json").write_text(json.dumps(report))
    for name in ("config.json", "generation_config.json"):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | {"eos_token_id": TEXT_END}))
    done = CliRunner().invoke(generate_app, list(map(str, command)))
    assert json.loads(done.stdout) == before
    assert "assembling" in done.stderr
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name]
    assert "assembling" not in CliRunner().invoke(generate_app, list(map(str, command))).stderr


def test_the_outdated_folder_stays_where_no_new_one_can_be_made(tmp_path):
    run = rigged_run(tmp_path, OTHER)
    call(generate_app, run, "--prompt", "x")
    folder = run / "assembled" / "step-00000001"
    (folder / "report.json").write_text("{}")
    shard = run / "checkpoints" / "step-00000001" / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert CliRunner().invoke(generate_app, [str(run), "--prompt", "x"]).exit_code != 0
    assert (folder / "config.json").is_file()


assert VOCAB > WORD + 60 and len(SPECIAL) == len(UNION)
