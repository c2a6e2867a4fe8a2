"""Rendering a launch of thousands of nodes: seconds, files, bytes, peak memory.

    python benchmarks/render.py                  # configs/pretrain/llama-3.1-8b-slurm.yaml on 2,048 nodes of 8 GPUs
    python benchmarks/render.py --nodes 16384

The command is the user's own, `launch --dry-run --out DIR`, in a process of its own. Bounds: 2 s, 200 KB.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SPEC = Path(__file__).resolve().parent.parent / "configs" / "pretrain" / "llama-3.1-8b-slurm.yaml"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=2048)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    data = args.nodes * 8 // 2
    changes = [f"cluster.nodes={args.nodes}", f"parallel.data={data}", "batch.accumulation=1"]
    words = [word for change in changes for word in ("--set", change)]
    seconds = []
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(args.repeat):
            out = Path(scratch) / str(turn)
            command = [sys.executable, "-m", "llama_scale", "launch", str(SPEC), *words, "--dry-run", "--out", str(out)]
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - start)
        files = [path for path in out.rglob("*") if path.is_file()]
        result = {
            "nodes": args.nodes,
            "processes": args.nodes * 8,
            "seconds": statistics.median(seconds),
            "seconds_bound": 2.0,
            "files": len(files),
            "bytes": sum(path.stat().st_size for path in files),
            "bytes_bound": 200_000,
            "peak_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        }
    if args.json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        print(f"{key:16s} {value:12,.4g}" if isinstance(value, float) else f"{key:16s} {value:12,}")


if __name__ == "__main__":
    main()
