"""Counting rows for ``train.epochs``, by the commands that do."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama_scale.errors import LaunchError, SpecError
from llama_scale.spec.load import load_spec
from llama_scale.train import count_rows
from llama_scale.train.data import Samples
from tests.live_runs import write_spec, write_tokens
from tests.task_tokenizer import write_tokenizer
from tests.unit.cli.calling import call
from tests.unit.spec.test_length import epochs_text

ROWS = (59 * 40 - 1) // 16
"""59 of 60 documents of 40 tokens are for training; windows of 16 tokens share one with the next."""


def test_plan_and_dry_run_count_the_windows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = write_spec(tmp_path, text=epochs_text("2"))

    assert call("plan", spec, "--json") == 0
    answer = capsys.readouterr()
    assert json.loads(answer.out)["steps"] == -(-2 * ROWS // 4) == 74
    assert answer.err == "2 epochs x 147 rows / 4 a step = 74 steps, rounded up\n"
    assert call("launch", spec, "--dry-run", "--out", tmp_path / "bundle") == 0
    bundled = load_spec(tmp_path / "bundle" / "spec.yaml")
    assert (bundled.train.steps, bundled.train.epochs) == (74, None)
    # A window of the training split comes once an epoch, and there are as many as were counted.
    data = load_spec(spec).data
    assert data.kind == "indexed"
    assert len(Samples(data, split="train", seed=1, vocab_size=101)) == ROWS


def test_weights_of_a_blend_say_how_often_each_part_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = epochs_text("2").replace("[{path: tokens}]", "[{path: tokens, weight: 3}, {path: more, weight: 1}]")
    spec = write_spec(tmp_path, text=text)
    write_tokens(tmp_path / "more", documents=120)

    assert call("plan", spec, "--json") == 0

    more = (118 * 40 - 1) // 16
    times = [f"{2 * (ROWS + more) * share / rows:.2g}" for share, rows in ((0.75, ROWS), (0.25, more))]
    assert capsys.readouterr().err.splitlines() == [
        f"2 epochs x {ROWS + more} rows / 4 a step = {-(-2 * (ROWS + more) // 4)} steps, rounded up",
        f"  {tmp_path / 'tokens'}: 147 rows; by its weight 3, each is read {times[0]} times",
        f"  {tmp_path / 'more'}: {more} rows; by its weight 1, each is read {times[1]} times",
    ]


@pytest.mark.parametrize("command", [["plan"], ["launch", "--dry-run"]])
def test_data_that_is_elsewhere_is_told_with_the_way_around(tmp_path: Path, command: list[str]) -> None:
    spec = write_spec(tmp_path, text=epochs_text("2"))
    (tmp_path / "tokens.bin").unlink()

    with pytest.raises(LaunchError, match=r"train\.epochs=2 needs .*tokens\.bin is missing.*: --set train\.steps=N$"):
        call(command[0], spec, *command[1:])
    assert call(command[0], spec, *command[1:], "--set", "train.steps=5") == 0


def test_launch_that_cannot_be_counted_or_is_too_short_leaves_nothing(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    spec = write_spec(tmp_path / "a", text=epochs_text("0.1") + "schedule: {kind: cosine, warmup_steps: 8}\n")
    with pytest.raises(SpecError, match="warmup_steps=8 is more than the run's 4 steps"):
        call("launch", spec, "--runs-dir", runs)
    assert not runs.exists()
    with pytest.raises(LaunchError, match="cannot write the rows to count into /proc/1/runs"):
        call("launch", spec, "--runs-dir", "/proc/1/runs")


def test_doctor_needs_no_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = write_spec(tmp_path, text=epochs_text("2"))
    (tmp_path / "tokens.bin").unlink()

    try:
        call("doctor", spec, "--json")
    except LaunchError as error:  # what the machine lacks
        assert "check" in str(error)
    assert "findings" in json.loads(capsys.readouterr().out)


def tasks_spec(folder: Path) -> Path:
    """Write a spec of two tasks, one of them without weight, and their files."""
    write_tokenizer(folder / "tokenizer")
    rows = [{"split": "train", "document": "one two", "summary": "one"}] * 30
    (folder / "sum.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = "data: {kind: split_field, path: sum.jsonl}"
    text = epochs_text("2").replace("data: {kind: indexed, blend: [{path: tokens}], seq_length: 16}", "")
    text = text.replace("vocab_size: 101", "vocab_size: 512")
    return write_spec(
        folder,
        text=text + "data: {kind: tasks, seq_length: 128}\ntokenizer: {kind: hf, path: tokenizer}\n"
        f"tasks: [{{name: a, kind: summarization, options: {{{data}}}}},\n"
        f"  {{name: b, kind: summarization, weight: 0, options: {{{data}}}}}]\n",
    )


@pytest.fixture
def own_log_level() -> Iterator[None]:
    """Give back the log level that the process of ``count_rows`` sets for itself."""
    logger = logging.getLogger("llama_scale")
    before = logger.level
    yield
    logger.setLevel(before)


@pytest.mark.usefixtures("own_log_level")
def test_rows_of_tasks_are_counted_after_packing_and_made_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tasks_spec(tmp_path)

    def count(*arguments: str | Path) -> dict[str, int]:
        assert count_rows.main([str(argument) for argument in (spec, *arguments)]) == 0
        rows: dict[str, int] = json.loads(capsys.readouterr().out)["rows"]
        return rows

    packed = count("--examples", tmp_path / "first")
    assert packed.keys() == {"a"} and 1 < packed["a"] < 30
    made = sorted(path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*.bin"))
    assert made
    (tmp_path / "sum.jsonl").write_text("no longer read")
    assert count("--examples", tmp_path / "second", "--known", tmp_path / "first") == packed
    assert not (tmp_path / "second").exists()
    assert count_rows.main([str(spec), "--examples", str(tmp_path / "third")]) == 5
    assert "sum.jsonl:1" in json.loads(capsys.readouterr().out)["error"]


def test_a_machine_without_torch_is_told_the_way_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama_scale.libraries.missing_libraries", lambda *names: [n for n in names if n == "torch"])

    with pytest.raises(
        LaunchError, match=r"counting the rows of tasks needs torch, not installed here: pip install .*N$"
    ):
        call("plan", tasks_spec(tmp_path))
