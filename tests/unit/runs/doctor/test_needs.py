from __future__ import annotations

from pathlib import Path

from llama_scale.plan.run_plan import make_plan
from llama_scale.runs.doctor.needs import needs_of
from tests.unit.runs.test_task_files import spec, summaries, write


def test_files_of_tasks_and_the_tokenizer_are_looked_at_on_the_host_that_reads_them(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", {"document": "long", "summary": "short", "split": "train"})
    one = spec(tmp_path, summaries(rows))

    assert needs_of(one, make_plan(one)).files == (f"{tmp_path}/tokenizer/tokenizer.json", rows)
    several = one.model_copy(update={"cluster": one.cluster.model_copy(update={"nodes": 2})})
    assert needs_of(several, make_plan(one)).files == ()
