"""From sbatch to the first step: ours over the plainest script, sbatch + srun + torchrun, same worker; root, Debian.

    LS_CLUSTER=1 python benchmarks/slurm_start.py [--rounds 3] [--json]

A real Slurm on two hosts (network namespaces) x 2 ranks. Both are timed from the call of sbatch to the `time_utc` of
the first line in metrics.jsonl, in turns; the first round of each is not counted. Target: <= 0.8x.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from llama_scale.launchers.base import load_launcher
from llama_scale.launchers.queue import queue_of
from llama_scale.plan.run_plan import make_plan
from llama_scale.runs.folder import RunFolder
from llama_scale.runs.submission import enqueue
from llama_scale.spec.load import load_spec
from tests.cluster.hosts import PACKAGES, bring_up, install_packages
from tests.cluster.slurm import PACKAGES as SLURM_PACKAGES
from tests.cluster.slurm import Slurm
from tests.live_runs import write_spec

TARGET = 0.8
PLAIN = """\
#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=1 --cpus-per-task=2 --output={run}/plain.log
host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=1
srun --kill-on-bad-exit=1 --cpus-per-task=2 {python} -m torch.distributed.run --nnodes 2 --nproc-per-node 2 \
  --rdzv-backend c10d --rdzv-endpoint "$host:$((20000 + SLURM_JOB_ID % 10000))" --rdzv-id "$SLURM_JOB_ID" \
  -m llama_scale.train.worker {run}
"""
SETTINGS = (
    "launcher={kind: slurm, threads_per_process: 1, grace_s: 30}",
    *("cluster={device: cpu, nodes: 2, devices_per_node: 2}", "train.steps=2", "checkpoint.asynchronous=false"),
)


def first_step(slurm: Slurm, run: RunFolder, begin: float) -> float:
    """Return the seconds from the beginning to the first step, once the run has ended."""
    slurm.wait(lambda: not slurm.call("squeue", "-h", check=False).strip(), what="the end of the job", timeout_s=240)
    if not run.metrics.exists():
        logs = [*run.path.glob("*.log"), *run.logs.glob("*.log")]
        raise SystemExit("no step was done:\n" + "".join(path.read_text()[-2000:] for path in logs))
    line = json.loads(run.metrics.read_text().splitlines()[0])
    return datetime.fromisoformat(line["time_utc"]).timestamp() - begin


def ours(slurm: Slurm, run: RunFolder) -> float:
    """Queue a run as `launch` does, without the start of the command itself."""
    spec = load_spec(run.spec)
    queue = queue_of(load_launcher("slurm"))
    assert queue is not None
    begin = time.time()
    enqueue(run, spec=spec, queue=queue)
    return first_step(slurm, run, begin)


def plain(slurm: Slurm, run: RunFolder) -> float:
    """Queue the plainest script."""
    script = run.path / "plain.sh"
    script.write_text(PLAIN.format(run=run.path, python=sys.executable))
    begin = time.time()
    slurm.call("sbatch", script)
    return first_step(slurm, run, begin)


def measure(slurm: Slurm, folder: Path, rounds: int) -> dict[str, float]:
    """Return both medians and their ratio."""
    spec = load_spec(write_spec(folder), overrides=SETTINGS)
    bundle = load_launcher("slurm").render(spec, make_plan(spec), python=sys.executable)
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    for number in range(rounds + 1):
        for name, way in (("ours", ours), ("plain", plain)):
            seconds = way(slurm, RunFolder.create(folder / "runs", name=f"{name}-{number}", files=bundle.files))
            if number:
                times[name].append(seconds)
    found = {name: statistics.median(values) for name, values in times.items()}
    return found | {"ratio": found["ours"] / found["plain"]}


def main() -> int:
    """Print both medians and their ratio; 1 if the ratio is over the target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if os.geteuid() != 0 or not (os.environ.get("CI") or os.environ.get("LS_CLUSTER")):
        print("not run: it changes the machine, so it needs root and LS_CLUSTER=1")
        return 0
    install_packages(PACKAGES | SLURM_PACKAGES)
    hosts = bring_up(2)
    try:
        slurm = Slurm(hosts=hosts)
        slurm.start()
        os.environ.update(slurm.environment)
        with tempfile.TemporaryDirectory() as folder:
            found = measure(slurm, Path(folder), options.rounds)
        slurm.close()
    finally:
        hosts.close()
    if options.json:
        print(json.dumps(found))
    else:
        print(f"sbatch to first step: {found['ours']:.2f} s, plain torchrun {found['plain']:.2f} s", end=": ")
        print(f"{found['ratio']:.2f}x (target <= {TARGET}x)")
    return int(found["ratio"] > TARGET)


if __name__ == "__main__":
    sys.exit(main())
