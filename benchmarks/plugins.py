"""Time of `plugins list` with 50 installed plugins, and of `validate` for a spec that uses two.

    .venv/bin/python benchmarks/plugins.py [--plugins 50] [--repeats 7]

The plugins are generated into a temporary folder on PYTHONPATH. Printed are medians of wall and CPU time; on a busy
machine the CPU time is the figure to compare.
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
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.distributions import DESCRIPTOR, install  # noqa: E402

SPEC = {
    "version": 1,
    "name": "two-plugins",
    "model": {"kind": "preset", "name": "smollm2-135m"},
    "data": {"kind": "indexed", "blend": [{"path": "a"}], "seq_length": 128},
    "train": {"steps": 10, "from": "scratch"},
    "batch": {"global": 8, "micro": 2},
    "engine": {"kind": "megatron"},
    "cluster": {"devices_per_node": 1, "device": "cpu"},
    "adapters": [{"name": f"a{i}", "kind": f"plugin{i}", "options": {"size": 8}} for i in range(2)],
    "mixture": {"objective": "joint"},
}


def timed(command: list[str], environment: dict[str, str], repeats: int) -> tuple[float, float]:
    """Return the median wall and CPU seconds of a command."""
    walls, cpus = [], []
    for _ in range(repeats + 1):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.perf_counter()
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
        walls.append(time.perf_counter() - started)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(walls[1:]), statistics.median(cpus[1:])  # the first one compiles


def main() -> None:
    """Generate the plugins and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plugins", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder)
        for number in range(arguments.plugins):
            name = f"plugin{number}"
            install(
                site,
                f"dist-{name}",
                points={"llama_scale.adapters": {name: f"{name}_module:DESCRIPTOR"}},
                modules={
                    f"{name}_module": DESCRIPTOR.replace("NAME", name).replace("no_such_module", f"{name}_layer"),
                    f"{name}_layer": "",
                },
            )
        spec = site / "run.yaml"
        spec.write_text(json.dumps(SPEC), encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((folder, str(ROOT)))}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for words in (["plugins", "list"], ["validate", str(spec)]):
            wall, cpu = timed([sys.executable, "-m", "llama_scale", *words], environment, arguments.repeats)
            print(f"{words[0] + ' ' + words[1].rpartition('/')[2]:24s} {wall:6.2f} s wall, {cpu:.2f} s CPU")


if __name__ == "__main__":
    main()
