"""How long does the search of every layout of Llama 3.1 405B on 16,384 H100 take, and does it stay light?

    python benchmarks/plan_search.py

Runs `plan SPEC --search --gpus 16384 --gpu h100` as the user does, five times, each in a process of its own: <= 2 s,
peak RSS <= 300 MB, and nothing heavy imported.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

HEAVY = ("torch", "numpy", "transformers", "deepspeed", "megatron", "sklearn")

SPEC = """\
version: 1
name: search
model: {kind: preset, name: llama-3.1-405b}
data: {kind: indexed, blend: [{path: tokens}], seq_length: 8192}
train: {tokens: 1e12}
engine: {kind: megatron}
parallel: {data: 2048, tensor: 8}
batch: {global: 2048, micro: 1}
cluster: {nodes: 2048, devices_per_node: 8}
"""

PROGRAM = f"""\
import atexit, sys
atexit.register(lambda: print("loaded:", *(name for name in {HEAVY!r} if name in sys.modules), file=sys.stderr))
from llama_scale.cli.app import main
main()
"""


def main() -> None:
    """Print wall time, peak memory and heavy imports; exit with 1 if a target is missed."""
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder) / "search.yaml"
        spec.write_text(SPEC)
        command = [sys.executable, "-c", PROGRAM, "plan", str(spec)]
        command += ["--search", "--gpus", "16384", "--gpu", "h100", "--top", "3"]
        walls = []
        for _ in range(5):
            start = time.monotonic()
            found = subprocess.run(command, check=True, capture_output=True, text=True)
            walls.append(time.monotonic() - start)
    print(found.stdout)
    loaded = found.stderr.partition("loaded:")[2].split()
    peak_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(
        f"median of 5: {median(walls):.2f} s (target <= 2), peak RSS {peak_mb:.0f} MB (target <= 300), "
        f"of {', '.join(HEAVY)} loaded: {', '.join(loaded) or 'none'} (target none)"
    )
    sys.exit(int(median(walls) > 2 or peak_mb > 300 or bool(loaded)))


if __name__ == "__main__":
    main()
