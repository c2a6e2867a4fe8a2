"""``runs --clean-bases``: what is removed and what stays, of imported weights that runs share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llama_scale.checkpoint.bases import bases_in, locked, source_key
from llama_scale.checkpoint.manifest import StartRecord
from llama_scale.errors import LaunchError
from llama_scale.runs.folder import RunFolder
from llama_scale.runs.records import Status
from tests.unit.cli.calling import call
from tests.unit.runs.conftest import MakeRun


def imported(runs: Path, source: Path) -> Path:
    """Make a Hugging Face folder and what stands for its imported weights."""
    source.mkdir(parents=True)
    (source / "config.json").write_text("{}")
    folder = bases_in(runs) / source_key(source)
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps({"source": str(source)}))
    return folder


def use(run: RunFolder, folder: Path, *, state: str) -> None:
    run.save_start(StartRecord(kind="folder", name="x", path="/x", digest="0" * 64, weights=str(folder)))
    status = {"state": state, "supervisor_pid": 1, "started_utc": "t", "updated_utc": "t"}
    run.status.write_text(Status.model_validate(status).model_dump_json())


def clean(runs: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    call("runs", "--runs-dir", runs, "--clean-bases", "--json")
    return {Path(one["folder"]).name: one["kept"] for one in json.loads(capsys.readouterr().out)}


def test_what_no_run_needs_goes_and_what_one_needs_stays(
    tmp_path: Path, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    unused, needed, restorable, busy = (imported(runs, tmp_path / name) for name in "abcd")
    first, second = make_run(), make_run()
    use(first, needed, state="succeeded")
    use(second, restorable, state="failed")
    (tmp_path / "b" / "config.json").write_text('{"changed": true}')
    (bases_in(runs) / f".{unused.name}.tmp-dead").mkdir()
    with locked(bases_in(runs), busy.name):
        kept = clean(runs, capsys)
    assert kept == {
        unused.name: "",
        needed.name: f"{first.name} needs it, and {tmp_path}/b is gone or has changed",
        restorable.name: "",
        busy.name: "it is being imported",
    }
    left = {path.name for path in bases_in(runs).iterdir() if not path.name.endswith(".lock")}
    assert left == {needed.name, busy.name}

    call("runs", "--runs-dir", runs, "--clean-bases")
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("): ")[2].split(",")[0] for line in lines if str(busy) in line] == ["removed"]


def test_weights_of_a_run_that_runs_stay(
    tmp_path: Path, make_run: MakeRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = imported(tmp_path / "runs", tmp_path / "a")
    run = make_run()
    use(run, folder, state="running")
    monkeypatch.setattr("llama_scale.runs.view.is_running", lambda run: True)
    assert clean(tmp_path / "runs", capsys) == {folder.name: f"{run.name} is running on it"}


def test_weights_that_a_full_run_has_left_behind_go(
    tmp_path: Path, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = imported(tmp_path / "runs", tmp_path / "a")
    run = make_run()
    use(run, folder, state="succeeded")
    (tmp_path / "a" / "config.json").unlink()
    step = run.checkpoints / "step-00000002"
    step.mkdir()
    (step / "manifest.json").write_text("{}")
    assert "needs it" in clean(tmp_path / "runs", capsys)[folder.name]  # damaged: nobody knows
    shape = {
        "hidden_size": 8, "ffn_hidden_size": 8, "num_layers": 1, "num_heads": 1, "num_kv_heads": 1, "head_dim": 8,
        "vocab_size": 8,
    }  # fmt: skip
    manifest = {
        "format": 1, "step": 2, "samples": 2, "engine": "ddp", "topology": {}, "shape": shape, "tensors": {},
        "shards": [], "parameter_digest": "0" * 64, "created_utc": "t",
    }  # fmt: skip
    (step / "manifest.json").write_text(json.dumps(manifest))
    assert clean(tmp_path / "runs", capsys) == {folder.name: ""}


def test_nothing_to_clean_and_nothing_to_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("runs", "--runs-dir", tmp_path, "--clean-bases")
    assert capsys.readouterr().err == f"no imported weights in {tmp_path}\n"
    (tmp_path / "file").write_text("x")
    with pytest.raises(LaunchError, match="cannot list the runs in"):
        call("runs", "--runs-dir", tmp_path / "file", "--clean-bases")
