from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llama_scale.errors import ConvertError, LaunchError
from llama_scale.runs.folder import RunFolder
from llama_scale.runs.records import RankFailure, Status
from llama_scale.simulate import commands, curves, killing
from llama_scale.simulate.commands import Done
from llama_scale.simulate.faults import explain, place
from llama_scale.simulate.forms import forms_of
from llama_scale.simulate.simulation import Simulation, new_folder
from tests.live_runs import run_cli, write_spec
from tests.unit.simulate.strategies import checked
from tests.unit.spec.documents import INLINE, document

TRACEBACK = """Traceback (most recent call last):
  File "/work/train/loop.py", line 3, in step
    loss.backward()
  File "/home/me/gain.py", line 17, in output
    return y * w
  File "/env/lib/python3.11/site-packages/torch/functional.py", line 99, in multiply
    return a * b
RuntimeError: sizes differ
"""


def run_with(tmp_path: Path, name: str = "run", *, status: dict[str, Any] | None = None, steps: Any = ()) -> RunFolder:
    run = RunFolder(tmp_path / name)
    for folder in (run.logs, run.checkpoints, run.attempts):
        folder.mkdir(parents=True)
    if status is not None:
        now = "2026-11-24T00:00:00+00:00"
        record = Status.model_validate({"supervisor_pid": 1, "started_utc": now, "updated_utc": now, **status})
        run.status.write_text(record.model_dump_json())
    run.rank_log(1).touch()
    run.metrics.write_text("".join(json.dumps({"step": n, **line}) + "\n" for n, line in enumerate(steps, start=1)))
    return run


def done(tmp_path: Path, said: str, **fields: Any) -> Done:
    log = tmp_path / "phase.log"
    log.write_text(said)
    return Done(**{"status": 5, "out": "", "log": log, **fields})


def test_first_failing_rank_is_explained_with_the_place_in_its_code(tmp_path: Path) -> None:
    failure = {"rank": 1, "kind": "crash", "error": "RuntimeError: sizes differ", "traceback": TRACEBACK}
    run = run_with(tmp_path, status={"state": "failed", "first_failure": failure})

    text = explain(done(tmp_path, "error: long story"), run)

    assert text == (
        f"rank 1: RuntimeError: sizes differ first (/home/me/gain.py:17, in output); its log: {run.rank_log(1)}"
    )


def test_failure_without_a_rank_names_the_logs(tmp_path: Path) -> None:
    agent = {"rank": None, "error": "no port is free"}
    run = run_with(tmp_path, status={"state": "failed", "first_failure": agent})
    assert explain(done(tmp_path, ""), run) == f"agent: no port is free; logs: {run.logs}"
    silent = run_with(tmp_path, "silent", status={"state": "failed", "message": "agent killed"})
    assert explain(done(tmp_path, ""), silent) == f"agent killed; logs: {silent.logs}"


@pytest.mark.parametrize(
    ("said", "fields", "expected"),
    [
        ("$ llama-scale x\nnote\nerror: it is wrong\n  twice\n", {}, "it is wrong\n  twice"),
        ("$ llama-scale x\nKilled\n", {}, "Killed"),
        ("", {}, "ended with status 5 and said nothing"),
        ("error: x", {"late": True}, "did not end within 300 s"),
    ],
)
def test_what_a_command_said_last(tmp_path: Path, said: str, fields: dict[str, Any], expected: str) -> None:
    found = done(tmp_path, said, **fields)
    assert found.error == expected
    assert explain(found, None) == f"{expected}; its log: {found.log}"


def test_traceback_of_libraries_alone_has_no_place() -> None:
    assert place(RankFailure(traceback="")) == ""
    inner = '  File "/env/site-packages/torch/nn.py", line 1, in forward\n'
    assert place(RankFailure(traceback=inner)) == ""


def test_commands_are_logged_with_what_they_say(tmp_path: Path) -> None:
    found = commands.run(["validate", tmp_path / "no such.yaml"], log=tmp_path / "logs" / "x.log")
    assert found.status == 3
    assert found.log.read_text().startswith(f"$ llama-scale validate '{tmp_path}/no such.yaml'\n")
    assert "no such file" in found.log.read_text()


def test_command_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_TIMEOUT_S", 0.01)
    found = commands.run(["validate", "x"], log=tmp_path / "x.log")
    assert found.late
    assert found.error == "did not end within 0.01 s"


def lines(*losses: float | None, norm: float = 1.0) -> list[dict[str, Any]]:
    return [{"loss": loss, "grad_norm": norm} for loss in losses]


def test_steps_that_differ_are_yielded_with_both_values(tmp_path: Path) -> None:
    one = run_with(tmp_path, "one", steps=lines(4.0, 3.0, 2.0))
    same = run_with(tmp_path, "same", steps=lines(4.0, 3.0001, 2.0))
    other = run_with(tmp_path, "other", steps=lines(4.0, None))

    loose = curves.TOLERANCES["fp32"]
    assert list(curves.differences(one, same, tolerances=loose)) == []
    assert list(curves.differences(one, same, tolerances={})) == [(2, "loss 3 and 3.0001")]
    assert list(curves.differences(one, other, tolerances=loose)) == [(2, "loss 3 and not finite"), (3, "is missing")]
    assert curves.largest(one, same) == pytest.approx(1e-4 / 3)
    norms = run_with(tmp_path, "norms", steps=lines(4.0, 3.0, 2.0, norm=1.1))
    assert next(curves.differences(one, norms, tolerances=loose)) == (1, "grad_norm 1 and 1.1")


def test_run_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="has no complete checkpoint"):
        curves.final(run_with(tmp_path))


def test_run_that_ended_is_not_killed(tmp_path: Path) -> None:
    run = run_with(tmp_path, status={"state": "succeeded"})
    run.lock.touch()
    with pytest.raises(killing.TooFastError, match="had ended before a rank could be killed"):
        killing.kill_rank(run, 0)
    broken = run_with(tmp_path, "broken", status={"state": "failed", "message": "rank 0 fell"})
    broken.lock.touch()
    with pytest.raises(LaunchError, match="rank 0 fell"):
        killing.kill_rank(broken, 0)


def test_waiting_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(killing, "_START_S", 0.0)
    with pytest.raises(LaunchError, match=r"waited 0 s for a checkpoint of"):
        killing.kill_rank(run_with(tmp_path), 0)


def words(**sections: Any) -> list[str]:
    scratch = {"steps": 10, "from": "scratch"}
    return [form.folder for form in forms_of(checked(document(model=INLINE, train=scratch, **sections)))]


def test_forms_follow_from_what_is_trained() -> None:
    data = {"kind": "split_field", "path": "/rows.jsonl"}
    tasks = [
        {"name": "find", "kind": "semantic_search", "options": {"data": data, "max_document_tokens": 16}},
        {"name": "sum", "kind": "summarization", "options": {"data": data}},
    ]
    on_tasks = {
        "data": {"kind": "tasks", "seq_length": 128},
        "tokenizer": {"kind": "hf", "path": "/tokenizer"},
        "tasks": tasks,
    }
    lora, prefix = ({"name": k, "kind": k, "task": t} for k, t in (("lora", "find"), ("prefix", "sum")))
    assert words() == ["hf"]
    assert words(**on_tasks) == ["hf", "sentence-transformers-find"]
    assert words(**on_tasks, adapters=[lora, prefix]) == [
        *("mixture", "merged-lora", "peft-lora", "sentence-transformers-find")
    ]
    swapped = [prefix | {"task": "find"}, lora | {"task": "sum"}]
    assert words(**on_tasks, adapters=swapped) == ["mixture", "merged-lora", "peft-lora"]


def test_failed_phase_is_recorded_and_ends_the_simulation(tmp_path: Path) -> None:
    told: list[str] = []
    twin = Simulation(checked(document()), folder=tmp_path, tell=told.append)

    def fails() -> str:
        raise LaunchError("it broke")

    twin._phase("train", lambda: "fine", LaunchError)
    with pytest.raises(ConvertError, match=r"simulation failed in phase verify after 0 s: it broke"):
        twin._phase("verify", fails, ConvertError)
    report = twin.to_dict()
    assert [(phase["name"], phase["passed"]) for phase in report["phases"]] == [("train", True), ("verify", False)]
    assert not report["passed"]
    assert told == ["train    ok    0.0 s  fine"]


def test_folder_of_a_simulation(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "runs", name="big", out=None)
    assert folder.parent == tmp_path / "runs"
    assert folder.name.startswith("simulate-big-")
    assert new_folder(tmp_path, name="big", out=tmp_path / "mine") == tmp_path / "mine"
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(LaunchError, match=r"mine exists and is not empty; nothing in it is overwritten"):
        new_folder(tmp_path, name="big", out=tmp_path / "mine")
    with pytest.raises(LaunchError, match=r"cannot make /proc/1/out: .*; choose another"):
        new_folder(tmp_path, name="big", out=Path("/proc/1/out"))


@pytest.mark.parametrize("option", ["--dry-run", "--detach"])
def test_simulation_starts_nothing_else(tmp_path: Path, option: str) -> None:
    found = run_cli("launch", write_spec(tmp_path / "spec"), "--simulate", option)
    assert found.returncode == 2
    assert "--simulate goes neither with --dry-run nor with --detach" in " ".join(found.stderr.replace("│", "").split())


def test_errors_of_the_spec_end_it_with_3(tmp_path: Path) -> None:
    spec = write_spec(tmp_path / "spec", text="version: 1\n")
    found = run_cli("launch", spec, "--simulate", "--out", tmp_path / "out")
    assert found.returncode == 3
    assert not (tmp_path / "out").exists()
