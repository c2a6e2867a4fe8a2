from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llama_scale.cli.tokenizer import app as tokenizer_app
from llama_scale.resources import data_dir

SAMPLE = str(data_dir("configs") / "smoke" / "sample.jsonl.gz")


def call(*words: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llama_scale", *map(str, words)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_text_to_token_files_to_figures(tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("hello world\n")

    trained = call(
        "tokenizer", "train", "--input", SAMPLE, "more.txt", "--vocab-size", "700", "--output", "t", folder=tmp_path
    )
    built = call("data", "build", "-i", SAMPLE, "-i", "*.txt", "--tokenizer", "t", "--output", "out/c", folder=tmp_path)
    shown = call("data", "info", "out/c", "--verify", folder=tmp_path)
    as_json = call("data", "info", "out/c", "--json", folder=tmp_path)

    assert (trained.returncode, trained.stdout) == (0, "t/tokenizer.model\n"), trained.stderr
    assert built.returncode == 0, built.stderr
    record = json.loads(built.stdout)
    assert record == json.loads((tmp_path / "out" / "c.json").read_text())
    assert record["documents"] == 741
    assert shown.returncode == 0, shown.stderr
    assert "documents        741" in shown.stdout
    facts = json.loads(as_json.stdout)
    assert facts["unigram_entropy_nats"] == pytest.approx(record["unigram_entropy_nats"])
    assert f"unigram entropy  {facts['unigram_entropy_nats']:.4f} nats" in shown.stdout


def test_faults_are_one_line_and_status_5(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": 1}\n')

    done = call("tokenizer", "train", "--input", "a.jsonl", "--vocab-size", "300", "--output", "t", folder=tmp_path)

    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.splitlines()[-1] == "error: a.jsonl:1: 'text' is 1, and the text must be a string"
    assert call("data", "info", "none", folder=tmp_path).returncode == 5
    assert call("data", "build", folder=tmp_path).returncode == 2


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("--vocab-size", "3", "greater than or equal to 260"),
        ("--vocab-size", str(2**31), "less than or equal to 2147483647"),
        ("--max-lines", "100", "greater than or equal to 101"),
        ("--seed", str(2**32), "less than or equal to 4294967295"),
    ],
)
def test_numbers_that_sentencepiece_cannot_take_are_refused(option: str, value: str, rule: str) -> None:
    words = ["train", "--input", SAMPLE, "--vocab-size", "700", "--output", "never", option, value]
    done = CliRunner().invoke(tokenizer_app, words)
    assert done.exit_code == 2
    assert f"Invalid value for '{option}': Input should be {rule}" in done.stderr
