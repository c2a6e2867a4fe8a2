"""A rehearsal of 2,048 hosts of 8 ranks: what the head does at that size, on a run folder with every host's files.

    python benchmarks/scale.py [--json]

The bundle is rendered for real from configs/pretrain/llama-3.1-405b-slurm.yaml; logs of all hosts and, of an attempt in
which one rank failed and all others lost it, their verdicts and error files are written as agents and ranks write them.
The commands are the users' own, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from llama_scale.runs.atomic import write_atomically
from llama_scale.runs.folder import RunFolder
from llama_scale.runs.rank_logs import node_log_path
from llama_scale.runs.start import new_status
from llama_scale.train import failures
from llama_scale.train.part_verdicts import merge, part_path, read_parts
from llama_scale.train.verdict import FirstFailure, Verdict

SPEC = Path(__file__).resolve().parent.parent / "configs" / "pretrain" / "llama-3.1-405b-slurm.yaml"
HOSTS, DEVICES = 2048, 8
_CULPRIT = 9_999
_LINE = "12:00:00 [dp0 pp0 tp0] step 1000/929833 loss 1.2345 tokens/s 1,869,061\n"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(Path(scratch))
    if args.json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        print(f"{key:44s} {value:12,.3f}" if isinstance(value, float) else f"{key:44s} {value:12,}")


def measure(scratch: Path) -> dict[str, float]:
    """Return seconds of each thing, and files and bytes."""
    result: dict[str, float] = {}

    def run(label: str, *words: object) -> None:
        begin = time.perf_counter()
        command = [sys.executable, "-m", "llama_scale", *map(str, words)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        result[f"{label}, s"] = time.perf_counter() - begin

    run("plan", "plan", SPEC)
    run("launch --dry-run", "launch", SPEC, "--dry-run", "--out", scratch / "bundle")
    files = {path.name: path.read_text() for path in (scratch / "bundle").iterdir()}
    result["bundle, files"] = len(files)
    result["bundle, bytes"] = sum(len(text.encode()) for text in files.values())
    folder = RunFolder.create(scratch / "runs", name="rehearsal", files=files)
    write_atomically(folder.status, new_status(state="failed", message="rehearsal", exit_code=5).model_dump_json())
    for host in range(HOSTS):
        node_log_path(folder, host).write_text(_LINE * 1000)
    run("logs of a rank, last 20 lines", "logs", folder.path, "--rank", _CULPRIT, "-n", 20)
    run("status", "status", folder.path)
    run("runs", "runs", "--runs-dir", scratch / "runs")
    _write_failure(folder.attempt(0))
    begin = time.perf_counter()
    verdict = merge(read_parts(folder.attempt(0)), nodes=HOSTS, devices=DEVICES, command="srun", status=1)
    result["verdict of 2,048 hosts, s"] = time.perf_counter() - begin
    assert verdict.first_failure is not None
    assert (verdict.first_failure.rank, len(verdict.victims)) == (_CULPRIT, HOSTS * DEVICES - 1)
    begin = time.perf_counter()
    failures.read_reports(folder.attempt(0), ranks=range(DEVICES))
    result["one host's own error files, s"] = time.perf_counter() - begin
    result["files of a failed attempt"] = sum(1 for _ in folder.attempt(0).iterdir())
    return result


def _write_failure(attempt: Path) -> None:
    """Write what agents and ranks leave when one rank crashes and all others lose their peer."""
    attempt.mkdir(parents=True)
    for host in range(HOSTS):
        ranks = range(host * DEVICES, (host + 1) * DEVICES)
        crashed = _CULPRIT in ranks
        for rank in ranks:
            kind: failures.Kind = "crash" if rank == _CULPRIT else "collateral"
            if failures.speaks(kind, local_rank=rank - ranks[0], world_size=HOSTS * DEVICES):
                text = "RuntimeError: CUDA error" if kind == "crash" else "RuntimeError: Connection closed by peer"
                report = failures.ErrorReport(
                    time_utc="2026-01-01T00:00:00", rank=rank, kind=kind, error=text, traceback="x" * 3000
                )
                failures.write_report(attempt, report)
        first = FirstFailure(
            rank=_CULPRIT if crashed else ranks[0], kind="crash" if crashed else "collateral", error="e"
        )
        victims = tuple(rank for rank in ranks if rank != first.rank)
        Verdict(state="failed", exit_code=5, first_failure=first, victims=victims).write(part_path(attempt, host))


if __name__ == "__main__":
    main()
