"""Engines side by side on two processes: tokens per second over ddp, our ZeRO 1 over a plain script, time to start.

    python benchmarks/engines.py                        # everything, some minutes
    python benchmarks/engines.py --part plain --json

* layouts: each engine and layout trains the same model on the same samples; the variants take turns, round by round.
  The ratio is to ddp's time in the same round, so that other load weighs on all alike; medians over the rounds.
* plain: our DeepSpeed engine with ZeRO 1 against the shortest script around ``deepspeed.initialize`` on the same
  layers; the two take turns step by step in the same processes. Target: at least 0.98x the plain script's speed.
* startup: from the start of the agent to the first step, and what it goes to. Target: DeepSpeed's at most 1.2x
  Megatron's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the ranks are the tests'
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

from tests.engines.harness import run_ranks  # noqa: E402
from tests.engines.specs import Case  # noqa: E402
from tests.engines.training import micro_batches, start  # noqa: E402

SHAPE = {"hidden_size": 256, "ffn_hidden_size": 768, "num_heads": 8, "num_kv_heads": 4, "head_dim": 32}
MODEL = SHAPE | {"vocab_size": 4096, "max_position_embeddings": 512}
TARGET_PLAIN, TARGET_STARTUP = 0.98, 1.2


def case_of(**layout: Any) -> Case:
    """Return a case with the benchmark's model and batch."""
    micro = layout.pop("micro", 4)
    return Case(shape=MODEL, seq_length=128, global_batch=16, micro=micro, **layout)


def deepspeed(zero: int) -> dict[str, Any]:
    """Return an engine section."""
    return {"kind": "deepspeed", "zero": zero}


VARIANTS = {
    "ddp dp2": case_of(dp=2, engine={"kind": "ddp"}),
    "megatron dp2": case_of(dp=2),
    "megatron dp2 distributed optimizer": case_of(dp=2, distributed_optimizer=True),
    "megatron tp2": case_of(tp=2),
    "megatron pp2": case_of(pp=2),
    "deepspeed zero0 dp2": case_of(dp=2, engine=deepspeed(0)),
    "deepspeed zero1 dp2": case_of(dp=2, engine=deepspeed(1)),
    "deepspeed zero2 dp2": case_of(dp=2, engine=deepspeed(2)),
    "deepspeed zero3 dp2": case_of(dp=2, engine=deepspeed(3)),
    "deepspeed zero1 tp2": case_of(tp=2, engine=deepspeed(1)),
    "deepspeed pp2": case_of(pp=2, engine=deepspeed(1)),
}


def step_times(case: Case, *, steps: int) -> tuple[list[float], float]:
    """Return each step's wall seconds on this rank, after two that do not count, and CPU seconds of a step."""
    engine = start(case)
    batches = [micro_batches(case, step=step, dp_rank=engine.coordinates.dp_rank) for step in range(2)]
    for batch in batches:
        engine.train_step(batch, 1e-4)
    times = []
    cpu = time.process_time()
    for step in range(steps):
        begin = time.perf_counter()
        engine.train_step(batches[step % 2], 1e-4)
        times.append(time.perf_counter() - begin)
    return times, (time.process_time() - cpu) / steps


def layouts(*, rounds: int, steps: int) -> dict[str, Any]:
    """Return the median over rounds of each variant's speed over ddp's, by wall and by CPU time."""
    ratios: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    speeds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(rounds):
        reference: tuple[float, float] | None = None
        for name, case in VARIANTS.items():
            ranks = run_ranks(2, step_times, case, steps=steps)
            wall = statistics.median(ranks[0][0])
            cpu = sum(used for _, used in ranks)
            reference = reference or (wall, cpu)
            ratios[name].append((reference[0] / wall, reference[1] / cpu))
            speeds[name].append(case.global_batch * case.seq_length / wall)
    return {
        name: {
            "tokens_per_s": round(statistics.median(speeds[name])),
            "over_ddp": round(statistics.median(wall for wall, _ in pairs), 3),
            "over_ddp_cpu_time": round(statistics.median(cpu for _, cpu in pairs), 3),
        }
        for name, pairs in ratios.items()
    }


def plain_script(case: Case) -> Callable[[Any], None]:
    """Return one training step of the shortest DeepSpeed script, as its documentation has it."""
    import torch

    from llama_scale.train.deepspeed_import import initialize
    from llama_scale.train.model import build_chunks

    spec, plan = case.spec(), case.plan()
    (model,) = build_chunks(spec, plan, plan.topology.coordinates(torch.distributed.get_rank()))
    config = {
        "train_batch_size": case.global_batch,
        "train_micro_batch_size_per_gpu": case.micro,
        "gradient_clipping": spec.optimizer.clip_grad_norm,
        "zero_optimization": {"stage": 1},
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31 - 1,
    }
    engine = initialize(model=model, optimizer=torch.optim.AdamW(model.parameters(), fused=True), config=config)

    def step(batch: Any) -> None:
        for micro in batch:
            loss = engine(micro) / micro["loss_mask"].sum()
            engine.backward(loss)
            engine.step()

    return step


def in_turns(case: Case, *, steps: int) -> tuple[list[float], list[float]]:
    """Return wall seconds of our steps and of the plain script's, which take turns."""
    engine = start(case)
    plain = plain_script(case)
    batch = micro_batches(case, step=0, dp_rank=engine.coordinates.dp_rank)

    def ours() -> None:
        engine.train_step(batch, 1e-4)

    def theirs() -> None:
        plain(batch)

    times: tuple[list[float], list[float]] = ([], [])
    for step in range(steps + 3):
        # Who goes first changes, for the first finds the caches cold.
        for which in (0, 1) if step % 2 else (1, 0):
            begin = time.perf_counter()
            (ours, theirs)[which]()
            if step >= 3:
                times[which].append(time.perf_counter() - begin)
    return times


def plain(*, steps: int) -> dict[str, Any]:
    """Return our ZeRO 1's speed over the plain script's."""
    mine, theirs = run_ranks(2, in_turns, VARIANTS["deepspeed zero1 dp2"], steps=steps, timeout_s=600.0)[0]
    pairs = [other / own for own, other in zip(mine, theirs, strict=True)]
    return {
        "ours_s": round(statistics.median(mine), 4),
        "plain_s": round(statistics.median(theirs), 4),
        "ours_over_plain": round(statistics.median(theirs) / statistics.median(mine), 3),
        "median_of_ratios": round(statistics.median(pairs), 3),
        "target": TARGET_PLAIN,
    }


STARTS = {
    "megatron": ("parallel.tensor=1", "parallel.data=2"),
    "ddp": ("parallel.tensor=1", "parallel.data=2", "engine={kind: ddp}"),
    "deepspeed": ("parallel.tensor=1", "parallel.data=2", "engine={kind: deepspeed, zero: 1}"),
}


def parts_of_start(case: Case) -> dict[str, float]:
    """Return this rank's seconds from imported modules to the first step's end, part by part."""
    from llama_scale.train.engine import make_engine
    from tests.engines.harness import join

    marks = [time.perf_counter()]
    join(case.plan())
    marks.append(time.perf_counter())
    engine = make_engine(case.spec(), case.plan())
    marks.append(time.perf_counter())
    engine.train_step(micro_batches(case, step=0, dp_rank=engine.coordinates.dp_rank), 1e-4)
    marks.append(time.perf_counter())
    names = ("process_groups", "engine", "first_step")
    return {name: round(b - a, 3) for name, a, b in zip(names, marks, marks[1:], strict=False)}


def import_seconds(module: str) -> float:
    """Return the CPU seconds (user and system) of a process that only imports a module."""
    code = f"import {module}, os; t = os.times(); print(t.user + t.system)"
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "TORCHDYNAMO_DISABLE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def seconds_to_first_step(folder: Path, overrides: tuple[str, ...]) -> float:
    """Run a tiny run by its agent and return when its first step was done, counted from the agent's start."""
    from datetime import datetime

    from tests.engines.run_folders import environment, make_run

    run = make_run(folder, *overrides, "train.steps=2", "cluster.devices_per_node=2", "parallel.pipeline=1")
    begin = time.time()
    command = [sys.executable, "-m", "llama_scale.train.agent", "--run", str(run)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    return datetime.fromisoformat(first["time_utc"]).timestamp() - begin


def startup(*, rounds: int) -> dict[str, Any]:
    """Return each engine's median time to the first step over Megatron's in the same round, and the parts of it."""
    times: dict[str, list[float]] = {name: [] for name in STARTS}
    for number in range(rounds + 1):
        for name, overrides in STARTS.items():
            with tempfile.TemporaryDirectory() as folder:
                seconds = seconds_to_first_step(Path(folder), overrides)
            if number:  # the first round fills the page cache
                times[name].append(seconds)
    cases = {
        "megatron": Case(dp=2),
        "ddp": Case(dp=2, engine={"kind": "ddp"}),
        "deepspeed": Case(dp=2, engine=deepspeed(1)),
    }
    found = {
        name: {
            "seconds": round(statistics.median(values), 2),
            "over_megatron": round(statistics.median(a / b for a, b in zip(values, times["megatron"], strict=True)), 3),
            "import_cpu_s": round(import_seconds(f"llama_scale.train.worker, llama_scale.train.{name}_engine"), 2),
            **run_ranks(2, parts_of_start, cases[name])[0],
        }
        for name, values in times.items()
    }
    return {"engines": found, "target_deepspeed_over_megatron": TARGET_STARTUP}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("layouts", "plain", "startup", "all"), default="all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    measures: dict[str, Callable[[], Any]] = {
        "layouts": lambda: layouts(rounds=options.rounds, steps=options.steps),
        "plain": lambda: plain(steps=4 * options.steps),
        "startup": lambda: startup(rounds=options.rounds),
    }
    result: dict[str, Any] = {"load_average": round(os.getloadavg()[0], 1)}
    for name, measure in measures.items():
        if options.part in (name, "all"):
            result[name] = measure()
    if options.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(name, json.dumps(value, indent=2))


if __name__ == "__main__":
    main()
