"""Measure how long the command line takes to start: ``python benchmarks/startup.py``.

Prints the median wall time of ``validate`` (a good spec) and ``--help``, their ratio to
``python -c "import typer, pydantic, yaml"`` in the same run, and which heavy modules they load (none may be).
Exit status 1 if a bound is missed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HEAVY = ("torch", "numpy", "transformers", "deepspeed", "megatron", "rich")
SPEC = """\
version: 1
name: startup
model: {kind: preset, name: llama-3.2-1b}
data: {kind: indexed, blend: [{path: data/a, weight: 0.5}, {path: data/b}], seq_length: 2048}
train: {steps: 1000}
batch: {global: 64, micro: 2}
parallel: {data: 2, tensor: 2, pipeline: 2}
engine: {kind: megatron}
schedule: {kind: cosine, warmup_steps: 10}
cluster: {devices_per_node: 8}
"""
LOADED = (
    "import sys; from llama_scale.cli.app import main\n"
    "try: main()\n"
    "except SystemExit as end: assert not end.code, end.code\n"
    f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
)


def wall_s(command: list[str]) -> float:
    """Return how long one run of the command takes."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15, help="runs of each command; the median counts")
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder) / "run.yaml"
        spec.write_text(SPEC, encoding="utf-8")
        script = str(Path(sys.executable).with_name("llama-scale"))
        commands = {
            "import typer, pydantic, yaml": [sys.executable, "-c", "import typer, pydantic, yaml"],
            "validate": [script, "validate", str(spec)],
            "--help": [script, "--help"],
        }
        for command in commands.values():
            wall_s(command)  # warm-up
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(runs):  # in turn, so that a busy moment of the machine meets all of them
            for name, command in commands.items():
                times[name].append(wall_s(command))
        median = {name: statistics.median(values) for name, values in times.items()}
        ratio = median["validate"] / median["import typer, pydantic, yaml"]
        print(f"import typer, pydantic, yaml  {median['import typer, pydantic, yaml']:.3f} s")
        print(f"validate                      {median['validate']:.3f} s (bound 0.35)  {ratio:.2f}x (bound 1.6)")
        print(f"--help                        {median['--help']:.3f} s (bound 0.25)")
        clean = True
        for words in (["validate", str(spec)], ["--help"]):
            done = subprocess.run([sys.executable, "-c", LOADED, *words], check=True, capture_output=True, text=True)
            found = done.stderr.strip().splitlines()[-1]
            clean = clean and found == "[]"
            print(f"heavy modules after {words[0]}: {found}")
    good = median["validate"] <= 0.35 and ratio <= 1.6 and median["--help"] <= 0.25 and clean
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
