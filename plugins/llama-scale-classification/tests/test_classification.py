"""Classification through llama-scale's own commands, and its scores."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from llama_scale_classification import DESCRIPTOR, ClassificationOptions
from llama_scale_classification.task import Classification, macro_f1

from llama_scale.extensions.examples import DataError
from llama_scale.extensions.task import TaskContext

LABELS = ("good", "bad")


class Letters:
    """A tokenizer of one token a character."""

    eos_id = 1
    start_ids = (2,)

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


def _task(tmp_path: Path, *rows: dict[str, str], **options: str) -> Classification:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"kind": "split_files", "train": str(path)}
    context = TaskContext(name="t", tokenizer=Letters(), seq_length=8, sizes={}, seed=1)  # type: ignore[arg-type]
    return Classification(ClassificationOptions(data=data, labels=LABELS, **options), context)


def test_the_last_token_carries_the_label(tmp_path: Path) -> None:
    task = _task(tmp_path, {"text": "abc", "label": "bad"}, {"text": "abcdefghij", "label": "good"})
    first, second = (task.encode(example)[0] for example in task.examples("train"))

    assert first.tokens.tolist() == [2, 97, 98, 99, 1] and first.weights.tolist() == [0, 0, 0, 0, 1]
    assert (int(first.extra["label"]), int(second.extra["label"])) == (1, 0)
    assert len(second.tokens) == 8 and second.cut == 4


def test_faulty_rows_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl.*1.*'ugly' is none of good, bad"):
        list(_task(tmp_path, {"text": "x", "label": "ugly"}).examples("train"))
    task = _task(tmp_path, {"text": "abcdefghij", "label": "good"}, overlong="error")
    with pytest.raises(DataError, match="the text has 11 tokens, and a row has room for 7"):
        task.encode(next(iter(task.examples("train"))))
    with pytest.raises(ValueError, match="names a label twice"):
        ClassificationOptions(data={"kind": "split_files", "train": "x"}, labels=("a", "a"))


def test_macro_f1_counts_each_label_once() -> None:
    pairs = [("good", "good"), ("good", "bad"), ("bad", "bad"), ("good", "good")]

    assert macro_f1(pairs, LABELS) == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert macro_f1(pairs, (*LABELS, "never")) == pytest.approx((4 / 5 + 2 / 3) / 3)
    assert DESCRIPTOR.head == "own"


def test_conformance() -> None:
    command = [sys.executable, "-m", "llama_scale", "plugins", "check", "classification", "--json"]
    done = subprocess.run([*command, "--options", "{labels: [good, bad]}"], capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
    checks = {check["name"]: check["status"] for check in json.loads(done.stdout)}
    assert checks["tensor parallel 2 equals 1"] == checks["data parallel 2 equals 1"] == "passed"
