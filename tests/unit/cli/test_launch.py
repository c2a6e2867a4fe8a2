from __future__ import annotations

import json
from pathlib import Path

import pytest

from llama_scale.errors import LaunchError, SpecError
from llama_scale.resources import data_dir
from llama_scale.runs.folder import RunFolder
from tests.live_runs import run_cli, write_spec
from tests.unit.cli.calling import call


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    return write_spec(tmp_path / "spec")


def test_dry_run_prints_the_bundle_and_starts_nothing(
    spec: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("launch", spec, "--dry-run", "--name", "other") == 0

    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("==>")] == [
        "==> spec.yaml <==", "==> plan.json <==", "==> env <==", "==> launch.sh <=="
    ]  # fmt: skip
    assert "name: other\n" in out
    assert [path.name for path in tmp_path.iterdir()] == ["spec"]


def test_dry_run_needs_no_data(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec.with_name("tokens.bin").unlink()
    assert call("launch", spec, "--dry-run") == 0
    assert "launch.sh" in capsys.readouterr().out


def test_out_writes_the_bundle_once_and_overwrites_nothing(
    spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "out"
    assert call("launch", spec, "--dry-run", "--out", out) == 0
    assert {path.name for path in out.iterdir()} == {"spec.yaml", "plan.json", "env", "launch.sh"}
    assert call("launch", spec, "--dry-run", "--out", out) == 0
    assert "holds this bundle already" in capsys.readouterr().err

    with pytest.raises(LaunchError, match=r"out exists and is not empty; nothing in it is overwritten"):
        call("launch", spec, "--dry-run", "--out", out, "--set", "seed=8")
    with pytest.raises(LaunchError, match=r"exists and is not empty"):
        call("launch", spec, "--dry-run", "--out", spec)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert call("launch", spec, "--dry-run", "--out", empty) == 0
    with pytest.raises(LaunchError, match=r"cannot write the bundle into /proc/1/out"):
        call("launch", spec, "--dry-run", "--out", "/proc/1/out")


def test_hint_behind_a_bundle_for_slurm_names_what_works_without_a_run_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, out = data_dir("configs") / "pretrain" / "llama-3.1-8b-slurm.yaml", tmp_path / "out"

    assert call("launch", spec, "--dry-run", "--out", out) == 0

    said = capsys.readouterr().err
    assert "`llama-scale launch` submits it" in said and f"in an allocation (salloc), run it with: bash {out}" in said


def test_out_without_dry_run_is_a_usage_error(spec: Path) -> None:
    done = run_cli("launch", spec, "--out", "x")
    assert done.returncode == 2
    assert "--out DIR goes with --dry-run" in done.stderr


def test_missing_data_is_named_and_makes_no_run_folder(spec: Path, tmp_path: Path) -> None:
    spec.with_name("tokens.idx").unlink()
    done = run_cli("launch", spec, "--runs-dir", tmp_path / "runs")
    assert done.returncode == 5
    assert f"error: token file {spec.with_name('tokens.idx')} is missing" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_place_that_cannot_be_written_is_named(spec: Path) -> None:
    done = run_cli("launch", spec, "--runs-dir", "/proc/1/runs")
    assert done.returncode == 5
    assert "error: cannot create a run folder in /proc/1/runs" in done.stderr


def test_fault_of_the_spec_is_exit_3(spec: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"tensor=3"):
        call("launch", spec, "--set", "parallel.tensor=3", "--runs-dir", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_bundles_own_files_are_what_a_run_folder_gets(spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call("launch", spec, "--dry-run", "--out", out)
    files = {path.name: path.read_text(encoding="utf-8") for path in out.iterdir()}
    run = RunFolder.create(tmp_path / "runs", name="tiny", files=files)
    assert json.loads(run.plan.read_text())["name"] == "tiny"
    assert run.spec.read_bytes() == (out / "spec.yaml").read_bytes()
