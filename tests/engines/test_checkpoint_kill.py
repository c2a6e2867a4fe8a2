"""SIGKILL at random moments of saving: what was complete stays, and nothing half-written is ever taken for complete."""

from __future__ import annotations

import os
import random
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_scale.checkpoint.manifest import list_complete, load_manifest, newest_complete
from llama_scale.checkpoint.reader import CheckpointReader
from llama_scale.layout.parameters import iter_parameters
from llama_scale.spec.checkpoint import Checkpoint
from llama_scale.train.checkpointing import Checkpointer, Position
from tests.engines import harness
from tests.engines.specs import Case
from tests.engines.state_engine import StateEngine, logical_value

KILLS = 24
CASE = Case(shape={"vocab_size": 4000, "hidden_size": 64})  # about 10 MB a checkpoint


def save_for_ever(root: Path, asynchronous: bool, ready: Connection) -> None:
    """Resume, then save step after step until killed, as a run in training does."""
    torch.set_num_threads(1)
    checkpoint = Checkpoint(asynchronous=asynchronous, keep_last=1)
    spec = CASE.spec().model_copy(update={"checkpoint": checkpoint})
    engine = StateEngine(CASE, 0)
    checkpointer = Checkpointer(root, spec=spec, plan=CASE.plan())
    position = checkpointer.resume(engine) or Position(step=0, samples=0)
    engine.check(position.step)
    ready.send(position.step)
    for step in range(position.step + 1, position.step + 10_000):
        engine.advance(step)
        checkpointer.save(engine, Position(step=step, samples=step))


def check_whole(folder: Path) -> None:
    reader = CheckpointReader(folder, verify="hashes")
    step = reader.manifest.step
    for parameter in iter_parameters(CASE.plan().shape):
        for group in ("model", "exp_avg", "exp_avg_sq"):
            assert torch.equal(reader.read(group, parameter.name), logical_value(group, parameter, step))


def start_saving(root: Path, asynchronous: bool) -> tuple[Any, int]:
    """Start the process; returns it and the step it resumed from, once it has begun to save."""
    context = harness.fork_server()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=save_for_ever, args=(root, asynchronous, sender), daemon=True)
    process.start()
    sender.close()
    step = receiver.recv()  # raises EOFError if the process could not resume
    while not unfinished(root):
        assert process.is_alive()
        time.sleep(0.001)
    return process, step


def unfinished(root: Path) -> list[Path]:
    return [path for path in root.glob("step-*.tmp-*") if ".tmp-gone" not in path.name]


def kill(process: Any) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL


def time_of_a_save(root: Path, asynchronous: bool) -> float:
    """Return the seconds from a save's beginning to its end, here and now."""
    process, _ = start_saving(root, asynchronous)
    started = time.monotonic()
    while newest_complete(root) is None:
        assert process.is_alive()
        time.sleep(0.001)
    duration = time.monotonic() - started
    kill(process)
    return duration


@pytest.mark.slow
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_kill_at_any_moment_loses_nothing_complete(tmp_path: Path, asynchronous: bool) -> None:
    duration = time_of_a_save(tmp_path / "calibration", asynchronous)
    moments = random.Random(f"moments {asynchronous}")
    root = tmp_path / "checkpoints"
    root.mkdir()
    newest, progressed, cut_off = 0, 0, 0
    for _ in range(KILLS // 2):
        process, resumed_step = start_saving(root, asynchronous)
        time.sleep(moments.uniform(0.0, 2.0 * duration))
        kill(process)

        assert resumed_step == newest
        cut_off += bool(unfinished(root))
        folder = newest_complete(root)
        if folder is None:
            assert newest == 0, "what was complete before is gone"
            continue
        step = load_manifest(folder).step
        assert step >= newest
        progressed += step > newest
        newest = step
        for complete in list_complete(root):
            check_whole(complete)
    # Both must have happened, or the test shows nothing: saves cut off, and saves between the kills.
    assert cut_off and progressed
