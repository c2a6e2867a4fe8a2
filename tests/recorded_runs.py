"""Run folders with records that no process had to make, for what reads them."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from llama_scale.launchers.local import LocalLauncher
from llama_scale.plan.run_plan import make_plan
from llama_scale.runs.folder import RunFolder
from llama_scale.runs.records import MemoryPeak, RankFailure, Status, Verdict
from llama_scale.spec.load import load_spec
from tests.live_runs import write_spec

BEGIN = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def record_run(
    folder: Path, *overrides: str, name: str = "tiny", steps: int = 20, adapters: tuple[str, ...] = (), failed: int = 0
) -> RunFolder:
    """Write a run that has ended, with its metrics, attempts, status and memory peaks.

    Args:
        folder: Where spec and runs go.
        overrides: Changes of the tiny spec.
        name: Name of the run.
        steps: Recorded steps; the 10th is not finite.
        adapters: Names of adapters whose responsibilities and task losses are recorded.
        failed: Attempts that failed before the last.
    """
    spec = load_spec(write_spec(folder / "spec"), overrides=(*overrides, f"name={name}"))
    plan = make_plan(spec)
    bundle = LocalLauncher().render(spec, plan, python=sys.executable)
    run = RunFolder.create(folder / "runs", name=spec.name, files=bundle.files)
    lines = [json.dumps(_record(step, adapters=adapters)) for step in range(1, steps + 1)]
    run.metrics.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    failure = RankFailure(rank=1, kind="crash", error="RuntimeError: <script>alert(1)</script>")
    for _ in range(failed):
        verdict = Verdict(state="failed", exit_code=1, message="rank 1 failed first", first_failure=failure)
        run.verdict(run.next_attempt()).write_text(verdict.model_dump_json(), encoding="utf-8")
    last = run.next_attempt()
    run.verdict(last).write_text(Verdict(state="ok", exit_code=0, message="done").model_dump_json(), encoding="utf-8")
    for stage in range(plan.topology.pp_size):
        peak = MemoryPeak(kind="resident", used=(40 + stage) << 10, total=500 << 20, spec_digest=plan.spec_digest)
        rank = plan.topology.rank(dp_rank=0, pp_rank=stage, tp_rank=0)
        run.memory_file(last, rank).write_text(peak.model_dump_json(), encoding="utf-8")
    status = Status(
        state="succeeded", supervisor_pid=1, attempt=last, step=steps, steps=steps, started_utc=BEGIN.isoformat(),
        updated_utc=BEGIN.isoformat(), message="all steps are done", checkpoint="step-00000020", exit_code=0,
    )  # fmt: skip
    run.status.write_text(status.model_dump_json(), encoding="utf-8")
    return run


def _record(step: int, *, adapters: tuple[str, ...]) -> dict[str, Any]:
    record: dict[str, Any] = {
        "step": step,
        "loss": None if step == 10 else 4.0 / step**0.2,
        "lr": 1e-3,
        "grad_norm": 1.0,
        "tokens": 64,
        "step_time_s": 0.5 + 0.01 * (step % 5),
        "data_s": 0.02,
        "tokens_per_s": 128.0 - step % 5,
        "mfu": None,
        "samples": 4 * step,
        "skipped": step == 10,
        "time_utc": (BEGIN + timedelta(seconds=step)).isoformat(),
    }
    if step % 5 == 0:
        record["validation_loss"] = 4.1 / step**0.2
    if adapters:
        record["responsibilities"] = {name: (n + 1) / sum(range(len(adapters) + 1)) for n, name in enumerate(adapters)}
        record["task_losses"] = {f"task-{name}": 3.0 / step**0.1 for name in adapters}
    return record
