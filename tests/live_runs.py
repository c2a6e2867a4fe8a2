"""Tiny specs, token files and real processes for tests that launch, watch and kill runs."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from llama_scale.launchers.processes import kill_all, list_marked
from llama_scale.runs.folder import RUN_VARIABLE, RunFolder

VOCABULARY = 101

SPEC = """
version: 1
name: tiny
seed: 7
model: {kind: inline, hidden_size: 32, ffn_hidden_size: 64, num_layers: 4, num_heads: 4, num_kv_heads: 2, head_dim: 8,
  vocab_size: 101, vocab_pad_multiple: 8}
data: {kind: indexed, blend: [{path: tokens}], seq_length: 16}
train: {steps: 4, timeout_s: 60}
batch: {global: 4, micro: 1}
parallel: {tensor: 2, pipeline: 2}
engine: {kind: megatron}
precision: {compute: fp32}
cluster: {device: cpu, devices_per_node: 4}
checkpoint: {every_steps: 2}
launcher: {kind: local, threads_per_process: 1, grace_s: 30}
tracking: {tensorboard: false}
"""


def write_tokens(prefix: Path, *, documents: int = 60, length: int = 40) -> None:
    """Write a .bin/.idx pair of uint16 tokens in Megatron-Core's format, without numpy."""
    random = Random(0)
    count = documents * length
    tokens = [random.randrange(VOCABULARY) for _ in range(count)]
    prefix.with_name(prefix.name + ".bin").write_bytes(struct.pack(f"<{count}H", *tokens))
    index = struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, 8, documents, documents + 1)
    index += struct.pack(f"<{documents}i", *[length] * documents)
    index += struct.pack(f"<{documents}q", *[2 * length * n for n in range(documents)])
    index += struct.pack(f"<{documents + 1}q", *range(documents + 1))
    prefix.with_name(prefix.name + ".idx").write_bytes(index)


def write_spec(folder: Path, *, text: str = SPEC) -> Path:
    """Write the tiny spec and its token file; return the spec's path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokens(folder / "tokens")
    path = folder / "spec.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def environment(**changes: str) -> dict[str, str]:
    """Return the environment of a shell that calls llama-scale."""
    drop = {"PYTHONDONTWRITEBYTECODE", RUN_VARIABLE, "LLAMA_SCALE_RUNS", "LLAMA_SCALE_DEBUG"}
    return {name: value for name, value in os.environ.items() if name not in drop} | changes


def start_cli(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    """Start ``llama-scale`` as a process with its output in pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", "llama_scale", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        **options,
    )


def run_cli(*arguments: str | Path, timeout_s: float = 300.0, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run ``llama-scale`` to its end."""
    with start_cli(*arguments, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout_s)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def wait_for(condition: Callable[[], Any], *, timeout_s: float = 120.0) -> Any:
    """Return the first true value of ``condition()``.

    Raises:
        AssertionError: It stayed false.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{condition} stayed false for {timeout_s} s"
        time.sleep(0.05)
    return value


def processes_of(run: RunFolder) -> list[int]:
    """Return the living processes of a run's attempts (not its supervisor)."""
    return list_marked(f"{RUN_VARIABLE}={run.path}")


def end_run(run: RunFolder) -> None:
    """Kill whatever a failed test left of a run."""
    left = processes_of(run)
    if run.lock.exists():
        for entry in Path("/proc").iterdir():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            except OSError:
                continue
            if b"llama_scale.runs.supervisor" in words and os.fsencode(run.path) in words:
                left.append(int(entry.name))
    kill_all(left)


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that must exist."""
    os.kill(pid, number)
