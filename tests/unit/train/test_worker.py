from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from llama_scale.errors import LaunchError
from llama_scale.train.worker import load_job
from tests.engines.run_folders import make_run


def test_run_folder_is_read(tmp_path: Path) -> None:
    job = load_job(make_run(tmp_path), attempt=3, profile="2:4")
    assert job.plan.topology.world_size == 4
    assert job.profile == (2, 4)
    assert job.attempt_dir == tmp_path / "run" / "attempts" / "003"


@pytest.mark.parametrize("name", ["spec.yaml", "plan.json"])
def test_folder_without_spec_or_plan_is_refused(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path)
    (run / name).unlink()
    with pytest.raises(LaunchError, match=rf"is no run folder: it has no {name}; `llama-scale launch SPEC` makes one"):
        load_job(run, attempt=0, profile=None)


def test_plan_of_another_spec_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    text = (run / "spec.yaml").read_text()
    assert "seed: 7" in text
    (run / "spec.yaml").write_text(text.replace("seed: 7", "seed: 8"))
    with pytest.raises(LaunchError, match=r"plan\.json was not made from this spec\.yaml"):
        load_job(run, attempt=0, profile=None)


def test_missing_tracker_is_refused_before_any_rank_starts(tmp_path: Path) -> None:
    if importlib.util.find_spec("wandb") is not None:
        pytest.skip("wandb is installed here")
    run = make_run(tmp_path, "tracking.wandb.project=x")
    with pytest.raises(LaunchError, match="the package wandb is not installed"):
        load_job(run, attempt=0, profile=None)
