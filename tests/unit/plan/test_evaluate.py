"""Rows of published measurements: read whatever they hold, predict each."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_scale.errors import SpecError
from llama_scale.plan.evaluate import predict_row, read_rows
from llama_scale.plan.rows import read_row
from tests.unit.cli.calling import call

ROW = {
    "source": "test", "model": "llama3-70b", "n_layers": "80", "hidden": "8192", "ffn_hidden": "28672", "n_heads": "64",
    "n_kv_heads": "8", "head_dim": "128", "vocab": "128256", "gated_mlp": "1", "tied_emb": "0", "seq_len": "8192",
    "moe_n_experts": "", "moe_topk": "", "moe_ffn_hidden": "", "gpu": "H100-80GB-SXM", "n_gpus": "64",
    "gpus_per_node": "8", "tp": "4", "pp": "4", "vp": "5", "cp": "2", "ep": "1", "dp": "2", "sharding": "distopt",
    "seq_parallel": "1", "recompute": "none", "micro_batch": "1", "global_batch": "128", "precision": "bf16",
    "mem_metric": "", "framework": "NeMo/Megatron 25.01", "attention_kernel": "flash(cuDNN)", "notes": "",
}  # fmt: skip


def test_a_row_becomes_its_workload() -> None:
    workload, notes = read_row(ROW)
    assert notes == []
    assert workload.model.numel == pytest.approx(70.55e9, rel=1e-3)
    parallel = workload.parallel
    assert (parallel.dp, parallel.tp, parallel.pp, parallel.vp, parallel.cp) == (2, 4, 4, 5, 2)
    assert parallel.sharding == "zero1"
    assert parallel.sequence
    assert workload.micro_batches == 64
    assert workload.software.attention == "flash3"
    assert workload.software.overlap_tp


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"gpu": "TPU-v5p"}, "gpu='TPU-v5p' is not in the hardware table; taken as h100"),
        ({"precision": "int3"}, "precision='int3' taken as bf16"),
        ({"sharding": "magic"}, "sharding='magic' taken as none"),
        ({"n_heads": "many"}, "n_heads='many' taken as 64"),
        ({"seq_len": "-5"}, "seq_len='-5' taken as 2048"),
        ({"global_batch": "1e400"}, "global_batch='1e400' taken as 2"),
        ({"hidden": "1e300"}, "hidden='1e300' taken as 4096"),
        ({"micro_batch": ""}, "micro_batch=1 is the fastest that fits"),
    ],
)
def test_what_cannot_be_read_is_assumed_and_said(changes: dict[str, str], note: str) -> None:
    prediction = predict_row(ROW | changes)
    assert note in prediction.notes
    assert prediction.tokens_per_s_per_gpu > 0


@pytest.mark.parametrize(
    ("notes", "gbit"),
    [
        ("zero1=4; 4x100Gb RoCE per node", 50.0),
        ("800Gbps-per-node/150GB/s-NVLink", 100.0),
        ("1600Gbps RoCE/node precision='bf16'", 200.0),
        ("nothing about it", 400.0),
    ],
)
def test_notes_tell_the_network(notes: str, gbit: float) -> None:
    assert read_row(ROW | {"notes": notes})[0].hardware.network_gbit_per_s == gbit


@pytest.mark.parametrize(
    ("kernel", "attention"),
    [
        ("torch", "unfused-eager"),
        ("fused", "unfused"),
        ("unfused", "unfused"),
        ("flash_attentionv1.0.8", "flash1"),
        ("flash_attention2 + RMS kernel", "flash2"),
        ("sdpa-flash", "flash2"),
        ("flash(cuDNN)", "flash3"),
    ],
)
def test_attention_kernels(kernel: str, attention: str) -> None:
    assert read_row(ROW | {"attention_kernel": kernel})[0].software.attention == attention


def test_a_pipeline_never_runs_on_one_micro_batch() -> None:
    workload, notes = read_row(ROW | {"micro_batch": "8", "global_batch": "16"})
    assert workload.micro_batches == 8
    assert notes == ["micro_batch=8 is the whole batch of a pipeline; taken as 8 of 1"]


def test_partial_recomputation_reads_its_share() -> None:
    changes = {"recompute": "partial-full", "notes": "recipe: full recompute of 5/32 layers"}
    parallel = read_row(ROW | changes)[0].parallel
    assert parallel.recompute == "full"
    assert parallel.recompute_layers == 5 / 32


def test_interleaving_that_is_not_printed_is_two_layers_a_chunk() -> None:
    assert read_row(ROW | {"vp": ""})[0].parallel.vp == 10


def test_experts_cost_less_than_a_dense_model_of_their_size() -> None:
    experts = ROW | {"moe_n_experts": "64", "moe_topk": "4", "moe_ffn_hidden": "7168", "ep": "2"}
    dense = ROW | {"ffn_hidden": str(64 * 7168)}
    assert predict_row(experts).tokens_per_s_per_gpu > 2 * predict_row(dense).tokens_per_s_per_gpu


@given(st.dictionaries(st.sampled_from(sorted(ROW)), st.text(max_size=12)))
def test_no_row_is_left_without_a_prediction(changes: dict[str, str]) -> None:
    prediction = predict_row(ROW | changes)
    assert prediction.tokens_per_s_per_gpu > 0
    assert prediction.peak_mem_gb > 0


@given(st.sampled_from(sorted(ROW)), st.integers(-3, 10**12))
def test_no_number_breaks_a_row(name: str, value: int) -> None:
    prediction = predict_row(ROW | {name: str(value)})
    assert prediction.tokens_per_s_per_gpu > 0


def _write(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(ROW))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_the_command_prints_one_line_a_row_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _write(tmp_path / "rows.csv", [ROW, ROW | {"gpu": "A100-80GB-SXM"}, ROW | {"gpu": "?"}])
    assert call("plan", "--evaluate", path) == 0
    out, err = capsys.readouterr()
    lines = list(csv.DictReader(out.splitlines()))
    assert [set(line) for line in lines] == [{"tokens_per_s_per_gpu", "peak_mem_gb", "fits"}] * 3
    assert float(lines[0]["tokens_per_s_per_gpu"]) > 2 * float(lines[1]["tokens_per_s_per_gpu"])
    assert all(line["fits"] in ("0", "1") for line in lines)
    assert "rows.csv:4: gpu='?' is not in the hardware table" in err


def test_json_has_the_same_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("plan", "--evaluate", _write(tmp_path / "rows.csv", [ROW]), "--json") == 0
    assert [set(row) for row in json.loads(capsys.readouterr().out)] == [
        {"tokens_per_s_per_gpu", "peak_mem_gb", "fits"}
    ]


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"seq_len": "1M"}, None),
        ({"global_batch": "1,024"}, None),
        ({"gpu": "NVIDIA DGX GB200 NVL72"}, "taken as gb200"),
        ({"gpu": "TPUv5"}, "taken as h100"),
        ({"sharding": "ZeRO-3", "precision": "FP8-hybrid", "recompute": "Full"}, None),
        ({"n_gpus": "100"}, "is no multiple of tp x pp x cp"),
        ({"n_gpus": "", "dp": "4"}, "n_gpus='' taken as"),
        ({"cp": "4", "seq_len": "1048576"}, None),
        ({"moe_n_experts": "8", "moe_topk": "", "moe_ffn_hidden": ""}, "moe_topk='' taken as 2"),
        ({"hidden": "5120.0", "n_heads": "41"}, None),
        ({"n_layers": "31.5"}, "n_layers='31.5' is no whole number; taken as 32"),
    ],
)
def test_unusual_cells_are_read_or_noted(changes: dict[str, str], note: str | None) -> None:
    prediction = predict_row(ROW | changes)
    assert prediction.tokens_per_s_per_gpu > 0
    assert prediction.peak_mem_gb > 0
    assert note is None or any(note in found for found in prediction.notes), prediction.notes


def test_numbers_and_kinds_are_read_in_many_forms() -> None:
    changes = {"seq_len": "128k", "global_batch": "1,024", "sharding": "fsdp2", "precision": "FP8-hybrid",
               "seq_parallel": "Yes", "recompute": "FULL"}  # fmt: skip
    found, _ = read_row(ROW | changes)
    assert (found.seq_length, found.global_batch, found.precision) == (131072, 1024, "fp8")
    assert (found.parallel.sharding, found.parallel.recompute) == ("zero3", "full")
    assert found.parallel.sequence == (found.parallel.tp > 1)


@pytest.mark.parametrize("form", ["bom and crlf", "semicolons", "quoted", "short", "long", "blanks", "latin-1"])
def test_every_row_of_an_unusual_file_has_a_prediction(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    names = [name for name in ROW if name != "notes"]
    cells = [ROW[name] for name in names]
    quoted = [*names, "notes"], [*cells, '"tuned, ""best"" of 3"']
    head, row = {
        "quoted": quoted,
        "short": (names, cells[:5]),
        "long": (names, [*cells, "more", "", "cells"]),
        "blanks": ([f" {name.upper()} " for name in names], [f"  {cell} " for cell in cells]),
        "latin-1": ([*names, "notes"], [*cells, "5 \xb5s"]),
    }.get(form, (names, cells))
    comma, end = {"semicolons": (";", "\n"), "bom and crlf": (",", "\r\n")}.get(form, (",", "\n"))
    text = ("\ufeff" if form == "bom and crlf" else "") + comma.join(head) + end + 2 * (comma.join(row) + end)
    path = tmp_path / "rows.csv"
    path.write_bytes(text.encode("latin-1" if form == "latin-1" else "utf-8"))

    assert call("plan", "--evaluate", path) == 0
    lines = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert len(lines) == 2
    assert all(float(line["tokens_per_s_per_gpu"]) > 0 and float(line["peak_mem_gb"]) > 0 for line in lines)
    if form != "short":
        expected = predict_row({name: cell for name, cell in ROW.items() if name in names})
        assert float(lines[0]["tokens_per_s_per_gpu"]) == pytest.approx(expected.tokens_per_s_per_gpu, abs=1e-3)


def test_a_file_with_few_columns_is_predicted_as_well_as_may_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("hidden,n_layers\n4096,32\n")

    assert call("plan", "--evaluate", path) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert "gpu='' is not in the hardware table" in err


def test_a_file_that_is_no_csv_of_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(SpecError, match="no column hidden, n_layers, gpu; the first line must name the columns"):
        list(read_rows(path))
    with pytest.raises(SpecError, match=r"cannot read .*missing\.csv"):
        list(read_rows(tmp_path / "missing.csv"))
