"""`eval` and `search` on a Hugging Face folder with the tasks of a spec: what they print, write and refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM
from typer.main import get_command
from typer.testing import CliRunner

from llama_scale.cli.convert import app as convert_app
from llama_scale.cli.eval import app as eval_app
from llama_scale.cli.generate import app as generate_app
from llama_scale.cli.search import app as search_app
from llama_scale.errors import LlamaScaleError
from tests.task_tokenizer import write_tokenizer

ROWS = [
    {"doc_id": f"d{i}", "text": f"Package number {i} plays {what} for users of {who}.", "query": f"{what} of {who}"}
    for i, (what, who) in enumerate([("music", "GNOME"), ("chess", "KDE"), ("films", "Xfce"), ("radio", "i3")] * 3)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("eval")
    write_tokenizer(path / "hf")
    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=512,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(path / "hf")
    rows = [{"document": r["text"], "summary": r["query"], "query": r["query"], "positive": r["text"]} for r in ROWS]
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (path / "spec.yaml").write_text(yaml.safe_dump(spec_data(path)))
    return path


def spec_data(path: Path) -> dict[str, Any]:
    data = {"kind": "split_files", "train": str(path / "rows.jsonl"), "test": str(path / "rows.jsonl")}
    return {
        "version": 1,
        "name": "evaluated",
        "model": {"kind": "hf", "path": str(path / "hf")},
        "tokenizer": {"kind": "hf", "path": str(path / "hf")},
        "data": {"kind": "tasks", "seq_length": 128},
        "tasks": [
            {"name": "sum", "kind": "summarization", "options": {"data": data, "max_new_tokens": 4}},
            {
                "name": "find",
                "kind": "semantic_search",
                "options": {"data": data, "max_query_tokens": 32, "max_document_tokens": 64, "recall_at": [1, 5]},
            },
        ],
        "train": {"steps": 1},
        "batch": {"global": 4, "micro": 4},
        "engine": {"kind": "ddp"},
        "cluster": {"nodes": 1, "devices_per_node": 1, "device": "cpu"},
    }


def call(app: Any, *arguments: str | Path) -> Any:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == 0, (done.output, done.exception)
    return done


def fails(app: Any, message: str, *arguments: str | Path) -> None:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert isinstance(done.exception, LlamaScaleError), (done.output, done.exception)
    assert message in str(done.exception)


def test_eval_scores_every_task_with_intervals(folder, tmp_path):
    out, lines = tmp_path / "deep" / "eval.json", tmp_path / "predictions.jsonl"
    command = [folder / "hf", "--spec", folder / "spec.yaml", "--limit", "6", "--resamples", "200"]
    done = call(eval_app, *command, "--out", out, "--predictions", lines, "--json")
    data = json.loads(done.stdout)
    assert data == json.loads(out.read_text())
    assert [(r["task"], r["model"], r["examples"]) for r in data["results"]] == [
        ("sum", "model", 6),
        ("find", "model", 6),
    ]
    for result in data["results"]:
        for found in result["metrics"].values():
            assert found["low"] <= found["value"] <= found["high"]
    assert set(data["results"][1]["metrics"]) >= {"recall@1", "recall@5", "mrr", "ndcg@10"}
    predictions = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(predictions) == 12
    assert predictions[0]["reference"] == next(r for r in predictions if r["task"] == "sum")["reference"]
    again = json.loads(call(eval_app, *command, "--json").stdout)
    for one, other in zip(data["results"], again["results"], strict=True):
        assert one["metrics"] == other["metrics"]  # the same subset, the same resamples


def test_eval_compares_models_in_a_table(folder):
    done = call(
        eval_app, folder / "hf", "--spec", folder / "spec.yaml", "--task", "sum", "--limit", "4", "--with", "base",
        "--with", "own", "--resamples", "100",
    )  # fmt: skip
    assert "sum: 4 test examples, 95% intervals" in done.stdout
    assert "base" in done.stdout
    assert "model" in done.stdout


def test_eval_says_what_is_wrong(folder, tmp_path):
    hf, spec = folder / "hf", folder / "spec.yaml"
    fails(eval_app, "says nothing of tasks; name a spec that does: --spec SPEC", hf)
    fails(eval_app, "the spec has no task 'x'; its tasks: sum, find", hf, "--spec", spec, "--task", "x")
    fails(eval_app, "so 'poet' cannot be chosen", hf, "--spec", spec, "--with", "poet")
    fails(eval_app, "no run in", tmp_path / "none")
    fails(eval_app, "the split 'validation' has no file", hf, "--spec", spec, "--split", "validation")
    assert CliRunner().invoke(eval_app, [str(hf), "--split", "dev"]).exit_code == 2


def test_eval_names_the_splits_that_have_examples(folder, tmp_path):
    data = spec_data(folder)
    shares = {"kind": "split_shares", "path": str(folder / "rows.jsonl"), "train": 50, "validation": 50, "test": 0}
    data["tasks"][0]["options"]["data"] = shares
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(data))

    message = "task sum: its test split has no examples; use --split train or validation"
    fails(eval_app, message, folder / "hf", "--spec", tmp_path / "spec.yaml", "--task", "sum")


@pytest.mark.parametrize("option", ["--task", "--with"])
def test_eval_wants_each_task_and_model_once(folder, option):
    done = CliRunner().invoke(eval_app, [str(folder / "hf"), option, "sum", option, "sum"])
    assert done.exit_code == 2
    assert f"Invalid value for {option}: sum is given twice" in done.stderr


@pytest.mark.parametrize("app", [eval_app, generate_app])
def test_seeds_are_those_that_libraries_take(folder, app):
    done = CliRunner().invoke(app, [str(folder / "hf"), "--seed", str(2**32)])
    assert done.exit_code == 2
    assert "Invalid value for '--seed': Input should be less than or equal to 4294967295" in done.stderr


def test_a_folder_with_code_of_its_own_needs_consent(folder, tmp_path, monkeypatch):
    import shutil

    shutil.copytree(folder / "hf", tmp_path / "hf")
    (tmp_path / "hf" / "own.py").write_text("raise SystemExit('ran')")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))

    def asked(_prompt: str = "") -> str:
        raise AssertionError("transformers asks whether to run the code")

    monkeypatch.setattr("builtins.input", asked)
    consent = "own.py); look at it and say --trust-remote-code"
    fails(eval_app, consent, tmp_path / "hf", "--spec", folder / "spec.yaml")
    fails(generate_app, consent, tmp_path / "hf", "--prompt", "x")


def test_every_command_that_loads_a_folder_asks_for_consent_in_the_same_words():
    convert, search = get_command(convert_app).commands, get_command(search_app).commands
    loading = [get_command(eval_app), get_command(generate_app), convert["verify"], search["index"], search["query"]]
    options = [[o for o in command.params if o.name == "trust_remote_code"] for command in loading]
    assert [len(found) for found in options] == [1] * 5
    assert len({found[0].help for found in options}) == 1
    others = [command for name, command in convert.items() if name != "verify"]
    assert not any(o.name == "trust_remote_code" for command in others for o in command.params)


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_search_finds_the_document_itself(folder, tmp_path, kind):
    index = tmp_path / "index"
    command = [folder / "hf", folder / "corpus.jsonl", "--spec", folder / "spec.yaml", "--out", index, "--kind", kind]
    facts = json.loads(call(search_app, "index", *command, "--json").stdout)
    assert (facts["documents"], facts["dimensions"], facts["task"]) == (12, 32, "find")
    query = ["query", index, ROWS[1]["text"], "--spec", folder / "spec.yaml", "--top-k", "3"]
    (found,) = json.loads(call(search_app, *query, "--json").stdout)
    assert [hit["rank"] for hit in found["hits"]] == [1, 2, 3]
    assert found["hits"][0]["id"] == "d1"
    assert found["hits"][0]["score"] == pytest.approx(1.0, abs=1e-5)
    shown = call(search_app, *query).stdout
    assert "  1  1.000  d1  Package number 1" in shown
    assert max(map(len, shown.splitlines()[1:])) <= 80
    fails(search_app, "exists; choose another --out", "index", *command)


def test_search_says_what_is_wrong(folder, tmp_path):
    spec, index = ["--spec", folder / "spec.yaml"], tmp_path / "index"

    def refuses(message: str, text: str, *more: str) -> None:
        (tmp_path / "rows.jsonl").write_text(text)
        fails(search_app, message, "index", folder / "hf", tmp_path / "rows.jsonl", *spec, "-o", index, *more)
        assert not index.exists()

    good = '{"doc_id": 1, "text": "a"}\n'
    refuses("rows.jsonl:2: doc_id='1' came before", good + '{"doc_id": "1", "text": "b"}\n')
    refuses("doc_id=[1] is no identifier", '{"doc_id": [1], "text": "a"}\n')
    refuses("the corpus has no documents", "")
    refuses("--task 'sum': the spec has these tasks of kind semantic_search: find", good, "--task", "sum")
    fails(search_app, "is no search index", "query", tmp_path, "x")
    fails(search_app, "no query is given", "query", tmp_path)
    call(search_app, "index", folder / "hf", folder / "corpus.jsonl", *spec, "-o", index)
    fails(search_app, "a query is blank", "query", index, " ", *spec)
    torch.manual_seed(2)
    other = LlamaForCausalLM(LlamaConfig.from_pretrained(folder / "hf"))
    other.save_pretrained(tmp_path / "other")
    fails(search_app, "were embedded by other weights", "query", index, "x", "--model", tmp_path / "other", *spec)
    (index / "documents.jsonl").write_text("")
    fails(search_app, "is damaged: 12 vectors and 0 documents of 12", "query", index, "x", *spec)
