"""Run folders with real token files, and agents started on them as processes, for tests of worker and agent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml

from llama_scale.plan.run_plan import make_plan
from llama_scale.spec.load import dump_spec, load_spec
from tests.unit.train.token_files import write_token_file

VOCAB = 61


def make_run(folder: Path, *overrides: str, documents: int = 200) -> Path:
    """Make a run folder: 4 ranks (tensor 2 x pipeline 2), a tiny model, random documents."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    lengths = random.integers(5, 60, documents)
    write_token_file(folder / "tokens", [random.integers(0, VOCAB, length) for length in lengths])
    (folder / "run.yaml").write_text(yaml.safe_dump(SPEC))
    spec = load_spec(folder / "run.yaml", overrides=overrides)
    run = folder / "run"
    run.mkdir()
    (run / "spec.yaml").write_text(dump_spec(spec))
    (run / "plan.json").write_text(make_plan(spec).to_json())
    return run


SPEC: dict[str, Any] = {
    "version": 1,
    "name": "tiny",
    "seed": 7,
    "model": {
        "kind": "inline",
        "hidden_size": 32,
        "ffn_hidden_size": 48,
        "num_layers": 4,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 12,
        "vocab_size": VOCAB,
        "max_position_embeddings": 64,
    },
    "data": {
        "kind": "indexed",
        "blend": [{"path": "tokens"}],
        "split": {"train": 80, "validation": 20, "test": 0},
        "seq_length": 16,
    },
    "train": {"steps": 4},
    "batch": {"global": 4, "micro": 1},
    "parallel": {"tensor": 2, "pipeline": 2},
    "engine": {"kind": "megatron"},
    "precision": {"compute": "fp32"},
    "cluster": {"device": "cpu", "devices_per_node": 4},
    "tracking": {"tensorboard": False},
}

FOREVER = ("train.steps=100000", "checkpoint.every_steps=100000")
"""Overrides for a run that ends only when it is made to."""


def environment(**extra: str) -> dict[str, str]:
    """Return the environment of a test's processes: one thread a rank, imports from .pyc files."""
    values = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **extra}
    values.pop("PYTHONDONTWRITEBYTECODE", None)
    return values


@contextmanager
def agent(run: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start an agent in a session of its own; whatever is left of the session at the end is killed."""
    command = [sys.executable, "-m", "llama_scale.train.agent", "--run", str(run), *arguments]
    process = subprocess.Popen(
        command,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        left = session_members(process.pid)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def finish(process: subprocess.Popen[str], *, timeout_s: float = 90.0) -> tuple[int, str]:
    """Wait for an agent and return its exit status and output."""
    output, _ = process.communicate(timeout=timeout_s)
    return process.returncode, output


def session_members(session: int) -> list[int]:
    """Return the processes of a session that are alive (not zombies)."""
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getsid(process.pid) == session and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except ProcessLookupError:
            continue
    return found


def wait_for(condition: Callable[[], Any], *, what: str, timeout_s: float = 90.0) -> Any:
    """Return the first true value of a condition, asked ten times a second."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError(f"waited {timeout_s} s for {what}")


def metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl, none if there is no such file."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def wait_for_step(run: Path, step: int = 1) -> None:
    """Wait until a run has done a step."""
    wait_for(lambda: len(metrics(run)) >= step, what=f"step {step}")


def verdict(run: Path, attempt: int = 0) -> dict[str, Any]:
    """Return the verdict of an attempt."""
    found: dict[str, Any] = json.loads((run / "attempts" / f"{attempt:03d}" / "verdict.json").read_text())
    return found


def rank_processes(agent_pid: int) -> list[int]:
    """Return the process ids of an agent's ranks, in order of rank."""
    return sorted(child.pid for child in psutil.Process(agent_pid).children())
