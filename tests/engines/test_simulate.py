"""`launch --simulate` passes what is right, and names faults that no validation can see."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from llama_scale.runs.find import list_runs
from tests.engines.faulty import install_gain
from tests.live_runs import SPEC, processes_of, run_cli, start_cli, wait_for, write_spec

pytestmark = pytest.mark.engines

PARALLEL = "parallel: {tensor: 2, pipeline: 2}"
ON_A_CLUSTER = (
    SPEC.replace(PARALLEL, "parallel: {tensor: 8, sequence: true}")
    .replace("num_heads: 4, num_kv_heads: 2", "num_heads: 32, num_kv_heads: 8")
    .replace("cluster: {device: cpu, devices_per_node: 4}", "cluster: {nodes: 1, devices_per_node: 8}")
    .replace("{kind: local, threads_per_process: 1, grace_s: 30}", "{kind: slurm, partition: gpu}")
    .replace("compute: fp32", "compute: bf16")
)
LARGE = ON_A_CLUSTER.replace("tensor: 8,", "data: 2, tensor: 8, pipeline: 4,").replace("nodes: 1,", "nodes: 8,")
WITH_GAIN = (
    SPEC.replace("train: {steps: 4,", "train: {from: scratch, steps: 4,")
    .replace(PARALLEL, "parallel: {tensor: 2}")
    .replace(
        "cluster: {device: cpu, devices_per_node: 4}",
        "cluster: {device: cpu, devices_per_node: 2}\nadapters: [{name: a, kind: gain}]\noptimizer: {lr: 1e-2}",
    )
)


def simulate(spec: Path, runs: Path) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    done = run_cli("launch", spec, "--simulate", "--runs-dir", runs, timeout_s=900)
    (folder,) = runs.iterdir()
    assert done.stdout == f"{folder}\n"
    for run in list_runs(folder / "runs"):
        assert processes_of(run) == []
    return done, json.loads((folder / "report.json").read_text())


def failed(done: subprocess.CompletedProcess[str], report: dict[str, Any], phase: str, pattern: str) -> None:
    """Check that a phase failed, with what words, and that they are the command's last."""
    assert report["phases"][-1]["name"] == phase, done.stderr
    assert not report["passed"]
    last = done.stderr[done.stderr.rindex("error: ") :]
    assert last.startswith(f"error: simulation failed in phase {phase} after ")
    assert re.search(pattern, last, re.DOTALL), last
    assert "Traceback" not in last


@pytest.mark.parametrize(
    ("text", "processes"), [(ON_A_CLUSTER, 2), pytest.param(LARGE, 8, marks=pytest.mark.soak)], ids=["2", "8"]
)
def test_a_good_spec_of_a_cluster_passes(tmp_path: Path, text: str, processes: int) -> None:
    spec = write_spec(tmp_path / "spec", text=text)

    done, report = simulate(spec, tmp_path / "runs")

    assert done.returncode == 0, done.stderr
    assert report["passed"]
    assert [phase["name"] for phase in report["phases"]] == [
        *("inputs", "train", "layout", "kill", "resume", "reshard", "convert", "verify")
    ]
    assert "launcher" in {change["field"] for change in report["changes"]}
    assert re.search(r"parallel\.tensor +8 +2\n", done.stderr)
    assert f"SIGKILL to rank {processes - 1}" in done.stderr


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


FOUND = {
    "shape": (5, "train", r"rank [01]: RuntimeError: The size of tensor a .*gain_module\.py:1\d, in output.*rank-0000"),
    "unreduced": (5, "layout", r"step \d+: \w+ \S+ and \S+ on 2 processes and on one.*tensor 2"),
    "forgetful": (5, "resume", r"step 4: loss .* without and with the kill: the state of step 3 was not all saved"),
    "merge": (6, "convert", r"--as merged a: .*convert\.log"),
}  # fmt: skip


@pytest.mark.parametrize("fault", ["shape", *(pytest.param(f, marks=pytest.mark.soak) for f in list(FOUND)[1:])])
def test_fault_of_a_plugin_is_named(tmp_path: Path, site: Path, fault: str) -> None:
    install_gain(site, fault)
    spec = write_spec(tmp_path / "spec", text=WITH_GAIN)
    assert run_cli("validate", spec).returncode == 0
    status, phase, pattern = FOUND[fault]

    done, report = simulate(spec, tmp_path / "runs")

    failed(done, report, phase, pattern)
    assert done.returncode == status


@pytest.mark.soak
def test_a_good_plugin_passes(tmp_path: Path, site: Path) -> None:
    install_gain(site, "none")
    done, report = simulate(write_spec(tmp_path / "spec", text=WITH_GAIN), tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    assert report["phases"][-2]["message"] == "mixture, merged a"


def test_tokens_outside_the_vocabulary_are_named(tmp_path: Path) -> None:
    spec = write_spec(tmp_path / "spec", text=SPEC.replace("vocab_size: 101", "vocab_size: 64"))
    assert run_cli("validate", spec).returncode == 0

    done, report = simulate(spec, tmp_path / "runs")

    failed(done, report, "inputs", r"tokens\.bin: token \d+ of document 0 is \d+, and the model knows the ids below")
    assert done.returncode == 5


@pytest.mark.soak
def test_sigterm_ends_all_that_was_started(tmp_path: Path) -> None:
    spec = write_spec(tmp_path / "spec")
    with start_cli("launch", spec, "--simulate", "--out", tmp_path / "out") as process:
        (run,) = wait_for(lambda: [r for r in list_runs(tmp_path / "out" / "runs") if processes_of(r)])
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=60) != 0
        assert process.stdout is not None and process.stderr is not None
    wait_for(lambda: processes_of(run) == [], timeout_s=60)
