"""A run on tasks from the command line: prepared once, validated by task, resumed on another layout, refused early."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.engines.harness import run_ranks
from tests.engines.run_folders import SPEC, metrics
from tests.engines.task_runs import VOCABULARY, sections, task_case, train_tasks, write_files
from tests.live_runs import environment


def cli(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llama_scale", *arguments],
        cwd=folder,
        env=environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.engines
def test_tasks_train_and_resume_on_another_layout(tmp_path: Path) -> None:
    files = write_files(tmp_path / "files")
    spec = {
        **SPEC,
        **json.loads(json.dumps(sections(files, "sum", "qa", "search"))),
        "model": {**SPEC["model"], "vocab_size": VOCABULARY, "vocab_pad_multiple": 8},
        "train": {"epochs": 0.15},
        "optimizer": {"lr": 1e-3},
        "batch": {"global": 12, "micro": 1},
        "parallel": {"data": 2},
        "validation": {"every_steps": 2, "batches": 1},
        "cluster": {"device": "cpu", "devices_per_node": 2},
        "launcher": {"kind": "local", "threads_per_process": 1},
    }
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))

    launched = cli(tmp_path, "launch", "spec.yaml")
    assert launched.returncode == 0, launched.stderr
    run = Path(launched.stdout.strip().splitlines()[-1])
    assert "0.15 epochs x 147 rows / 12 a step = 2 steps, rounded up" in launched.stderr
    assert "task sum: 27 rows; by its weight 1, each is read 0.27 times" in launched.stderr
    assert "task sum, train: 30 examples" in launched.stderr
    log = (run / "logs" / "rank-00000.log").read_text()
    assert "task sum, validation: 10 examples" in log and "train: 30" not in log, "what was counted is what is read"
    prepared = {path: path.stat().st_mtime_ns for path in (run / "examples").rglob("*.bin")}
    with (files / "sum.jsonl").open("a") as file:  # what has been prepared is the run's own
        file.write('{"split": "train", "document": "new", "summary": "new"}\n')
    # Two rows a micro-batch slot, as before: in-batch negatives are the slot's.
    layout = ("parallel={tensor: 2}", "batch={global: 12, micro: 2}", "train.epochs=0.3", "validation=null")
    resumed = cli(tmp_path, "resume", run.name, *(word for change in layout for word in ("--set", change)))

    assert resumed.returncode == 0, resumed.stderr
    assert "(0.3 epochs x 147 rows - 24 that are read) / 12 a step + 2 steps that are done = 4 steps" in resumed.stderr
    assert {path: path.stat().st_mtime_ns for path in (run / "examples").rglob("*.bin")} == prepared
    write_files(files)
    [expected] = run_ranks(1, train_tasks, task_case(files), tmp_path / "reference", steps=4)
    found = metrics(run)
    assert [line["loss"] for line in found] == pytest.approx([loss for loss, _ in expected["curve"]], rel=1e-5)
    assert found[1]["validation_losses"].keys() == {"sum", "qa", "search"}
    assert found[1]["validation_loss"] == pytest.approx(sum(found[1]["validation_losses"].values()) / 3)

    exported = cli(
        tmp_path, "convert", "export", "--from", str(run), "--to", "embedder", "--as", "sentence-transformers"
    )
    assert exported.returncode == 0, exported.stderr
    report = json.loads((tmp_path / "embedder" / "report.json").read_text())
    assert report["kind"] == "sentence-transformers" and report["verify"]["passed"]
    assert json.loads((tmp_path / "embedder" / "config.json").read_text())["architectures"] == ["LlamaModel"]
