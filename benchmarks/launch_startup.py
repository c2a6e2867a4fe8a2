"""Time from the start of the processes to the first training step: the agent against bare torchrun.

    python benchmarks/launch_startup.py [--ranks 4] [--rounds 3] [--json]

Both start the same worker on the same tiny run (tensor 2 x pipeline ranks/2), in turn, the first round of each
uncounted. Target: the agent's median is at most 0.45 of torchrun's at 4 ranks on 2 cores. Wall time is counted to the
`time_utc` of the first line in metrics.jsonl; CPU time, which other load on the machine changes less, to the end.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import yaml

from llama_scale.plan.run_plan import make_plan
from llama_scale.spec.load import dump_spec, load_spec

TARGET = 0.45


def make_run(folder: Path, *, ranks: int) -> Path:
    """Write a run folder of two steps with random tokens."""
    tokens = np.random.default_rng(0).integers(0, 256, 4096).astype(np.uint16)
    (folder / "tokens.bin").write_bytes(tokens.tobytes())
    numbers = [np.array([1], "<u8"), np.array([8], "u1"), np.array([1, 2], "<u8"), np.array([len(tokens)], "<i4")]
    numbers += [np.array([0], "<i8"), np.array([0, 1], "<i8")]
    (folder / "tokens.idx").write_bytes(b"MMIDIDX\x00\x00" + b"".join(part.tobytes() for part in numbers))
    model = {"hidden_size": 64, "ffn_hidden_size": 128, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2}
    values = {
        "version": 1,
        "name": "startup",
        "model": {"kind": "inline", **model, "head_dim": 16, "vocab_size": 256, "max_position_embeddings": 64},
        "data": {
            "kind": "indexed",
            "blend": [{"path": "tokens"}],
            "split": {"train": 1, "validation": 0, "test": 0},
            "seq_length": 32,
        },
        "train": {"steps": 2},
        "batch": {"global": 4, "micro": 1},
        "parallel": {"tensor": 2, "pipeline": ranks // 2},
        "engine": {"kind": "megatron"},
        "precision": {"compute": "fp32"},
        "cluster": {"device": "cpu", "devices_per_node": ranks},
        "checkpoint": {"asynchronous": False},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    spec = load_spec(folder / "run.yaml")
    run = folder / "run"
    run.mkdir()
    (run / "spec.yaml").write_text(dump_spec(spec))
    (run / "plan.json").write_text(make_plan(spec).to_json())
    return run


def cpu_seconds() -> float:
    """Return the CPU time of all ended child processes."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def seconds_to_first_step(command: list[str], run: Path) -> float:
    """Start the processes, let them end, and return when the first step was done, counted from the start."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    begin = time.time()
    result = subprocess.run([*command, str(run)], env=environment, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {result.returncode}:\n{result.stdout}{result.stderr}")
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    return datetime.fromisoformat(first["time_utc"]).timestamp() - begin


def main() -> int:
    """Print both medians and their ratio; 1 if the ratio is over the target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=4, choices=(2, 4, 8))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(options.ranks)]
    commands = {
        "agent": [sys.executable, "-m", "llama_scale.train.agent", "--run"],
        "torchrun": [*torchrun, "-m", "llama_scale.train.worker"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    cpu: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(options.rounds + 1):
        for name, command in commands.items():
            with tempfile.TemporaryDirectory() as folder:
                run, before = make_run(Path(folder), ranks=options.ranks), cpu_seconds()
                times[name].append(seconds_to_first_step(command, run))
                cpu[name].append(cpu_seconds() - before)
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    ratio = medians["agent"] / medians["torchrun"]
    if options.json:
        print(json.dumps({"ranks": options.ranks, "wall_s": times, "cpu_s": cpu, "medians_s": medians, "ratio": ratio}))
    else:
        for name, values in times.items():
            rounds = " ".join(f"{value:.2f}" for value in values)
            print(
                f"{name:9} median {medians[name]:6.2f} s   CPU {statistics.median(cpu[name]):6.2f} s   rounds {rounds}"
            )
        print(f"ratio     {ratio:.3f} (target <= {TARGET})   load average {os.getloadavg()[0]:.1f}")
    return 0 if ratio <= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
