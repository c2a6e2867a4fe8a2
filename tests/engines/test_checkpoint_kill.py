"""SIGKILL at random moments of saving: what was complete stays, and nothing half-written is ever taken for complete."""

from __future__ import annotations

import os
import random
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from llama_scale.checkpoint.manifest import list_complete, load_manifest, newest_complete
from llama_scale.checkpoint.reader import CheckpointReader
from llama_scale.layout.parameters import iter_parameters
from llama_scale.spec.checkpoint import Checkpoint
from llama_scale.train.checkpointing import Checkpointer, Position
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


@pytest.mark.slow
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_kill_at_any_moment_loses_nothing_complete(tmp_path: Path, asynchronous: bool) -> None:
    from tests.engines import harness

    context = harness._context()
    moments = random.Random(f"moments {asynchronous}")
    newest, progressed, leftovers = -1, 0, 0
    for _ in range(KILLS // 2):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=save_for_ever, args=(tmp_path, asynchronous, sender))
        process.start()
        try:
            sender.close()
            resumed_step = receiver.recv()  # raises EOFError if the process could not resume
            time.sleep(moments.uniform(0.0, 0.35))
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        assert process.exitcode == -signal.SIGKILL
        assert resumed_step == max(newest, 0)

        folder = newest_complete(tmp_path)
        leftovers += any(".tmp-" in p.name for p in tmp_path.iterdir())
        if folder is None:
            assert newest == -1, "what was complete before is gone"
            continue
        step = load_manifest(folder).step
        assert step >= newest
        progressed += step > newest
        newest = step
        for complete in list_complete(tmp_path):
            check_whole(complete)
    # The kills must have hit saves under way, or the test shows nothing.
    assert leftovers >= KILLS // 8
    assert progressed >= KILLS // 8
