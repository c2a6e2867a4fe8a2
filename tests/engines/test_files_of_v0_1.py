"""Runs that version 0.1 began go on as 0.1 went on with them, and its models answer as they answered then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.files_of_v0_1 import EXPECTED, RUNS, copy_files
from tests.live_runs import run_cli

pytestmark = pytest.mark.engines

STEPS = 5


def cli(*words: str | Path) -> str:
    done = run_cli(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def resume(run: Path, *changes: str) -> list[dict[str, Any]]:
    sets = [word for change in (f"train.steps={STEPS}", *changes) for word in ("--set", change)]
    cli("resume", run, *sets)
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def assert_same(curve: list[dict[str, Any]], expected: list[dict[str, Any]], *, rel: float) -> None:
    """Compare each step with what an undisturbed run of 0.1 recorded."""
    for name in ("step", "lr", "tokens", "samples"):
        assert [line[name] for line in curve] == [line[name] for line in expected], name
    assert [line["loss"] for line in curve] == pytest.approx([line["loss"] for line in expected], rel=rel)
    norms = [line["grad_norm"] for line in expected]
    assert [line["grad_norm"] for line in curve] == pytest.approx(norms, rel=5 * rel)
    for line, other in zip(curve, expected, strict=True):
        assert line.get("task_losses", {}) == pytest.approx(other.get("task_losses", {}), rel=5 * rel), line["step"]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_as_it_would_have(tmp_path: Path, name: str) -> None:
    run = copy_files(tmp_path, "imported", f"runs/{name}") / "runs" / name
    examples = sorted(run.glob("examples/*/train"))

    curve = resume(run)

    assert_same(curve, EXPECTED[name]["curve"], rel=2e-3 if name == "ddp" else 1e-5)  # ddp is bf16
    assert sorted(run.glob("examples/*/train")) == examples, "the examples were prepared a second time"


def test_a_run_goes_on_with_another_engine_and_layout(tmp_path: Path) -> None:
    run = copy_files(tmp_path, "runs/deepspeed") / "runs" / "deepspeed"

    curve = resume(run, "engine.kind=megatron", "parallel.tensor=2", "parallel.data=1")

    assert_same(curve, EXPECTED["deepspeed"]["curve"], rel=1e-5)


@pytest.mark.parametrize(("run", "form"), [("sft", "peft"), ("mixture", "mixture")])
def test_exports_are_proven_against_their_checkpoints(tmp_path: Path, run: str, form: str) -> None:
    root = copy_files(tmp_path, "imported", f"runs/{run}", f"exports/{form}")

    found = json.loads(
        cli("convert", "verify", "--from", root / "runs" / run, "--hf", root / "exports" / form, "--json")
    )

    assert found["passed"], found


def test_models_answer_as_they_did(tmp_path: Path) -> None:
    root = copy_files(tmp_path, "imported", "runs/mixture", "runs/sft", "exports/mixture")
    # What eval and generate of 0.1 left in a run: the mixture's folder, with the modelling files of that version.
    shutil.copytree(root / "exports" / "mixture", root / "runs" / "mixture" / "assembled" / "step-00000002")
    scores = json.loads(cli("eval", root / "runs" / "mixture", "--json"))["results"]
    assert {s["task"]: {name: m["value"] for name, m in s["metrics"].items()} for s in scores} == {
        task: pytest.approx(metrics, abs=1e-4) for task, metrics in EXPECTED["eval"]["mixture"].items()
    }
    for name, model, *trust in (
        ("sft", root / "runs" / "sft"),
        ("mixture", root / "exports" / "mixture", "--trust-remote-code"),
    ):
        expected = EXPECTED["generate"][name]
        words = ("generate", model, "--prompt", expected["prompt"], "--max-new-tokens", "8", "--json", *trust)
        assert json.loads(cli(*words)) == [expected], name
