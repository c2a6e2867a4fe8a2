"""`init --task`: the spec validates, and its numbers follow from data, model and machine."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from llama_scale.data.examples import Example
from llama_scale.data.survey import survey
from llama_scale.extensions import discover
from llama_scale.extensions.api import ADAPTERS, TASKS
from llama_scale.extensions.examples import read_all
from llama_scale.plan.run_plan import make_plan
from llama_scale.resources import data_dir
from llama_scale.spec.length import any_length
from llama_scale.spec.load import load_spec
from llama_scale.spec.presets import PRESETS
from llama_scale.spec.run import RunSpec
from tests.unit.cli.finetuning import ANSWER, CONFIG, call_init, rows_of, write_folder, write_rows


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "my model")


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

    assert (spec.model.init_from, spec.train.from_, spec.train.epochs) == (str(model), "weights", 3)
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


def test_rows_are_as_long_as_the_longest_example_needs_and_the_context_allows(tmp_path: Path, model: Path) -> None:
    words = ("--model", model, "--task", "sft", "--adapter", "lora", "--data")
    rows = rows_of("messages", 60)
    short = written(tmp_path / "short.yaml", *words, write_rows(tmp_path / "short.jsonl", rows))
    rows[7]["messages"][1]["content"] = ANSWER * 12
    middle = written(tmp_path / "middle.yaml", *words, write_rows(tmp_path / "middle.jsonl", rows))
    rows[7]["messages"][1]["content"] = ANSWER * 3000
    long = written(tmp_path / "long.yaml", *words, write_rows(tmp_path / "long.jsonl", rows))

    assert (short.data.seq_length, middle.data.seq_length, long.data.seq_length) == (256, 512, 1024)
    assert [spec.tasks[0].options["overlong"] for spec in (short, middle, long)] == ["error", "error", "truncate_right"]
    assert f"{tmp_path}/long.jsonl:8 may be longer" in (tmp_path / "long.yaml").read_text()


def test_no_conversation_is_longer_than_its_estimate(tmp_path: Path, model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(model))
    lines = (data_dir("configs") / "finetune" / "sample" / "chat.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for text in ("3.14159 2718281828 " * 9, "return [i**2 for i in range(5)]\n" * 9):
        rows.append({"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]})
    for number, row in enumerate(rows):
        found = survey([("train", Example(f"chat.jsonl:{number}", row))], vocab_size=len(tokenizer))
        real = tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=False)
        assert len(real) <= found.longest <= 4 * len(real)


def test_small_files_have_no_validation_split(tmp_path: Path, model: Path) -> None:
    data = write_rows(tmp_path / "chat.jsonl", rows_of("messages", 8))

    spec = written(tmp_path / "run.yaml", "--model", model, "--task", "sft", "--data", data)

    assert spec.validation is None
    assert (spec.tasks[0].options["data"]["train"], spec.tasks[0].options["data"]["validation"]) == (100, 0)


@pytest.mark.parametrize("count", range(20, 60, 4))
def test_validation_split_is_never_empty(tmp_path: Path, model: Path, count: int) -> None:
    data = write_rows(tmp_path / "chat.jsonl", rows_of("messages", count))

    spec = written(tmp_path / "run.yaml", "--model", model, "--task", "sft", "--data", data)

    options = discover.read_options(discover.task("sft"), spec.tasks[0].options)
    counts = Counter(split for split, _ in read_all(options))
    assert counts.total() == count
    assert counts["test"] == 0 and counts["train"] > counts["validation"] > 0


@pytest.mark.parametrize("kind", discover.names(TASKS))
def test_every_kind_of_task_is_written(tmp_path: Path, model: Path, kind: str) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [dict(row) for row in discover.task(kind).sample])

    spec = written(tmp_path / "run.yaml", "--model", model, "--task", kind, "--adapter", "lora", "--data", data)

    assert spec.tasks[0].kind == kind


@pytest.mark.parametrize("engine", ["megatron", "deepspeed", "ddp"])
@pytest.mark.parametrize("kind", discover.names(ADAPTERS))
def test_every_kind_of_adapter_is_written_for_every_engine(tmp_path: Path, model: Path, kind: str, engine: str) -> None:
    data = write_rows(tmp_path / "chat.jsonl", rows_of("messages", 30))
    words = ("--model", model, "--task", "sft", "--data", data, "--adapter", kind, "--engine", engine)

    spec = written(tmp_path / "run.yaml", *words)

    assert (spec.adapters[0].kind, spec.engine.kind) == (kind, engine)


@pytest.mark.parametrize("adapter", [("--adapter", "lora"), ()])
def test_layout_of_a_large_model_fits_the_profile(tmp_path: Path, model: Path, adapter: tuple[str, ...]) -> None:
    shape = PRESETS["llama-3.1-70b"].shape
    config = CONFIG | {
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.ffn_hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": 8192,
    }
    (model / "config.json").write_text(json.dumps(config))
    data = write_rows(tmp_path / "chat.jsonl", rows_of("messages", 60))
    words = (
        "--model",
        model,
        "--task",
        "sft",
        *adapter,
        "--data",
        data,
        "--profile",
        "dgx-h100",
        "--launcher",
        "slurm",
    )

    spec = written(tmp_path / "run.yaml", *words)

    assert spec.precision.compute == "bf16"
    assert max(stage.total for stage in make_plan(any_length(spec)).memory) < 80e9
    assert spec.cluster.nodes == 1 if adapter else spec.cluster.nodes > 1


def test_options_of_task_and_adapter_are_taken_over(tmp_path: Path, model: Path) -> None:
    rows = [{"prompt": f"{number}?", "response": ANSWER} for number in range(30)]
    data = write_rows(tmp_path / "chat.jsonl", rows)
    words = ("--model", model, "--task", "sft", "--data", data, "--adapter", "lora", "--adapter-option", "rank=4")

    spec = written(tmp_path / "run.yaml", *words, "--task-option", "system=Be brief.")

    assert (spec.tasks[0].options["system"], spec.adapters[0].options["rank"]) == ("Be brief.", 4)


def test_init_imports_nothing_heavy(tmp_path: Path, model: Path) -> None:
    data = write_rows(tmp_path / "chat.jsonl", rows_of("messages", 30))
    words = ["init", "--model", str(model), "--task", "sft", "--adapter", "lora", "--data", str(data)]
    code = (
        "import sys\nfrom llama_scale.cli.app import main\n"
        f"sys.argv = ['llama-scale', *{words!r}]\n"
        "status = main()\n"
        "heavy = {'torch', 'numpy', 'transformers', 'tokenizers', 'safetensors', 'sentencepiece'} & set(sys.modules)\n"
        "assert not heavy, heavy\nsys.exit(status)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
