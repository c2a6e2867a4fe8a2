"""Whether plans fit their site, and how fast they are predicted to be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from llama_scale.errors import SpecError
from llama_scale.plan.estimate import estimate
from llama_scale.plan.fit import capacity_bytes, problems, stage_needs
from llama_scale.plan.flops import model_flops_per_token
from llama_scale.plan.hardware import device_bytes
from llama_scale.plan.run_memory import run_memory
from llama_scale.plan.run_plan import make_plan
from llama_scale.plan.spec_workload import spec_workload
from tests.unit.cli.calling import call
from tests.unit.plan.specs import preset, run_spec
from tests.unit.plan.workloads import hardware

ENGINES: tuple[dict[str, Any], ...] = (
    {"kind": "megatron"},
    {"kind": "megatron", "distributed_optimizer": False},
    {"kind": "ddp"},
    *({"kind": "deepspeed", "zero": zero} for zero in (1, 2, 3)),
)


def _h100(**changes: Any) -> Any:
    cluster = {"nodes": 1, "devices_per_node": 8, "profile": "dgx-h100"}
    settings = {"dp": 4, "tp": 2, "seq_length": 8192, "accumulation": 32} | changes
    return run_spec(model=preset("llama-3.1-8b"), cluster=cluster, **settings)


def test_a_plan_without_a_site_is_not_judged() -> None:
    spec = run_spec(model=preset("llama-3.1-70b"), seq_length=8192)
    assert capacity_bytes(spec) is None
    assert problems(spec, make_plan(spec)) == []


def test_a_plan_that_fits_has_no_problems() -> None:
    spec = _h100()
    assert capacity_bytes(spec) == device_bytes(80)
    assert problems(spec, make_plan(spec)) == []


def test_a_plan_that_overflows_names_stage_and_bytes() -> None:
    spec = _h100(micro=8)
    plan = make_plan(spec)
    (found,) = problems(spec, plan)
    (need,) = stage_needs(spec, plan)
    assert need.total == need.tensors + need.slack + need.context
    gib = 1 << 30
    assert found.message.startswith(
        f"stage 0 needs {need.total / gib:.1f} GiB a device (tensors {need.tensors / gib:.1f}"
    )
    assert f"{(need.total - device_bytes(80)) / gib:.1f} GiB more than the 79.2 GiB of dgx-h100" in found.message
    assert found.code == "does-not-fit"


def test_processes_on_cpus_need_their_tensors_only() -> None:
    spec = run_spec(cluster={"devices_per_node": 1, "device": "cpu", "profile": "laptop"})
    plan = make_plan(spec)
    assert stage_needs(spec, plan)[0].total == plan.memory[0].total
    assert problems(spec, plan) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_the_searchs_memory_is_close_to_the_plans(engine: dict[str, Any]) -> None:
    degrees = {"dp": 8, "tp": 1} if engine["kind"] == "ddp" else {"dp": 4, "tp": 2}
    spec = _h100(engine=engine, **degrees)
    exact = make_plan(spec).memory[0].total
    assert run_memory(spec_workload(spec, hardware=hardware())).allocated == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("kind", ["none", "selective", "full"])
def test_the_searchs_activations_are_close_to_the_plans(kind: str) -> None:
    spec = _h100(recompute={"kind": kind}, dp=2, tp=2, pp=2, parallel={"sequence": True})
    exact = make_plan(spec).memory[0]
    found = run_memory(spec_workload(spec, hardware=hardware()))
    assert found.activations == pytest.approx(exact.activations, rel=0.15)


def test_mfu_counts_model_flops_and_hfu_what_is_recomputed_too() -> None:
    spec = _h100()
    plan = make_plan(spec)
    found = estimate(spec, plan, hardware=hardware(), usd_per_hour=2.0)
    flops = model_flops_per_token(plan.shape, 8192) * found.tokens_per_s
    assert found.mfu == pytest.approx(flops / (8 * 989e12))
    assert 0.2 < found.mfu == found.hfu < 1
    assert found.days == pytest.approx(found.step.total * plan.steps / 86400)
    assert found.usd == pytest.approx(found.days * 24 * 8 * 2.0)
    again = _h100(recompute={"kind": "full"})
    full = estimate(again, make_plan(again), hardware=hardware())
    assert full.hfu > full.mfu
    assert full.tokens_per_s < found.tokens_per_s
    assert full.usd is None


def test_block_recomputation_covers_a_share() -> None:
    spec = _h100(dp=2, tp=1, pp=4, recompute={"kind": "full", "method": "block", "layers": 2})
    assert spec_workload(spec, hardware=hardware()).parallel.recompute_layers == 2 / 8


def _write(folder: Path, name: str = "a", **lines: str) -> Path:
    values = {
        "parallel": "{data: 4, tensor: 2}",
        "batch": "{global: 128, micro: 1}",
        "cluster": "{devices_per_node: 8, profile: dgx-h100}",
        "engine": "{kind: megatron}",
    } | lines
    path = folder / f"{name}.yaml"
    path.write_text(
        f"version: 1\nname: {name}\nmodel: {{kind: preset, name: llama-3.1-8b}}\ntrain: {{tokens: 1e9}}\n"
        "data: {kind: indexed, blend: [{path: tokens}], seq_length: 8192}\n"
        + "".join(f"{key}: {value}\n" for key, value in values.items())
    )
    return path


def test_the_plan_shows_speed_cost_and_room(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("plan", _write(tmp_path), "--usd-per-hour", "2.5") == 0
    out = capsys.readouterr().out
    for text in ("Memory against one device of dgx-h100", "fits", "Predicted step time on h100", "MFU", "PaLM", "USD"):
        assert text in out
    assert max(map(len, out.splitlines())) <= 80


def test_json_holds_the_prediction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("plan", _write(tmp_path), "--json", "--gpu", "h200") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["derived"]["fits"] is True
    assert document["predicted"]["hardware"] == "h200"
    assert document["predicted"]["step_s"] == pytest.approx(sum(document["predicted"]["step"].values()))


def test_own_hardware_comes_from_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = "- {name: slow, device_pattern: Slow, bf16_tflops: 100, memory_gb: 64, memory_tb_per_s: 1, source: me}\n"
    file = tmp_path / "own.yaml"
    file.write_text(row)
    assert call("plan", _write(tmp_path), "--json", "--hardware", file) == 0
    slow = json.loads(capsys.readouterr().out)["predicted"]
    assert slow["hardware"] == "slow"
    assert slow["mfu"] < 1
    file.write_text(row + row.replace("slow", "slower"))
    with pytest.raises(SpecError, match=r"own\.yaml has 2 accelerators; choose one with --gpu slow \| slower"):
        call("plan", _write(tmp_path), "--hardware", file)
    with pytest.raises(SpecError, match=r"cannot read --hardware .*absent: No such file"):
        call("plan", _write(tmp_path), "--hardware", tmp_path / "absent")
    with pytest.raises(SpecError, match="'h1000' is not a known accelerator; did you mean"):
        call("plan", _write(tmp_path), "--gpu", "h1000")


def test_search_ranks_layouts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("plan", _write(tmp_path), "--search", "--gpus", "16", "--top", "4") == 0
    out = capsys.readouterr().out
    assert "layouts fit 16 x h100" in out
    assert "Why not these, against the first" in out
    assert call("plan", _write(tmp_path), "--search", "--json", "--top", "3", "--objective", "memory") == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["ranked"]) == 3
    assert document["ranked"][0]["fits"]
    assert document["ranked"][0]["parallel"]["data"] >= 1


def test_search_says_when_nothing_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(
        "- {name: tiny, device_pattern: T, bf16_tflops: 9, memory_gb: 1, memory_tb_per_s: 1, source: me, "
        "link_devices: 8}"
    )
    assert call("plan", _write(tmp_path), "--search", "--hardware", file, "--top", "2") == 0
    out, err = capsys.readouterr()
    assert "layouts fits 8 x tiny; the nearest are shown" in err
    assert "OOM on stage" in out


def test_diff_names_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = _write(tmp_path), _write(tmp_path, "b", parallel="{data: 8}")
    assert call("plan", first, second, "--diff") == 0
    out = capsys.readouterr().out
    assert "tensor" in out
    assert "tokens/s" in out
    assert "global batch" not in out
    assert call("plan", first, second, "--diff", "--json") == 0
    assert json.loads(capsys.readouterr().out)["tensor"] == {"a": 2, "b": 1}
    assert call("plan", first, first, "--diff") == 0
    assert capsys.readouterr().out == "the plans are equal\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "a plan takes 1 SPEC argument, and 0 given"),
        (("a", "b"), "a plan takes 1 SPEC argument, and 2 given"),
        (("a", "--diff"), "--diff takes 2 SPEC arguments, and 1 given"),
        (("a", "--evaluate", "rows.csv"), "--evaluate takes 0 SPEC arguments, and 1 given"),
        (("a", "b", "--diff", "--search"), "--search and --diff are different questions; ask one at a time"),
        (("a", "--gpus", "8"), "--gpus goes with --search"),
        (("a", "--top", "3"), "--top goes with --search"),
        (("a", "--objective", "cost"), "--objective goes with --search"),
        (("a", "b"), "--diff compares two"),
    ],
)
def test_forms_are_kept_apart(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(typer.BadParameter, match=message):
        call("plan", *arguments)


def test_launch_refuses_what_does_not_fit_unless_allowed(tmp_path: Path) -> None:
    spec = _write(tmp_path, batch="{global: 128, micro: 32}")
    with pytest.raises(SpecError, match=r"stage 0 needs .* GiB a device"):
        call("launch", spec, "--dry-run", "--out", tmp_path / "bundle")
    assert call("launch", spec, "--dry-run", "--out", tmp_path / "bundle", "--allow-oom") == 0
    assert (tmp_path / "bundle" / "launch.sh").is_file()
