"""The sharded model against transformers on the same weights: equal at every layout, and unequal when it should be."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from llama_scale.cli.convert import app
from llama_scale.convert import mapping
from llama_scale.convert.export_hf import export_hf
from llama_scale.convert.forms import export
from llama_scale.convert.import_hf import import_hf
from llama_scale.convert.mapping import GateUp, Plain, Qkv
from llama_scale.convert.models import Results, reference_results, save_prompts, stop_ids
from llama_scale.convert.proof import TOLERANCE, Comparison
from llama_scale.convert.reference import load_model
from llama_scale.convert.request import BASE, Request
from llama_scale.convert.shards import Layout
from llama_scale.convert.verify import compare, verify
from llama_scale.errors import ConvertError
from llama_scale.train.forward import forward
from tests.engines.harness import run_ranks
from tests.unit.convert.adapted import BOTTLENECK, DORA, IA3, LORA, PREFIX, adapter_checkpoint, record
from tests.unit.convert.tiny import Tiny

TOKENS = torch.randint(61, (1, 48), generator=torch.Generator().manual_seed(5))
SCALING = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
GQA = Tiny(config={"num_attention_heads": 24, "rope_scaling": SCALING})
TIED = Tiny(config={"tie_word_embeddings": True})


def sharded_results(checkpoint: Path, layout: Layout, stages: tuple[int, ...], *, generate: int = 0) -> Results:
    """Run the checkpoint's model on gloo ranks of the test's fork server."""
    folder = checkpoint.parent
    save_prompts({"random": TOKENS}, folder / "prompts.safetensors")
    request = Request(
        checkpoint=str(checkpoint),
        base=None,
        dtype="float32",
        tp_size=layout.tp_size,
        pp_size=layout.pp_size,
        vp_size=layout.vp_size,
        stage_layers=stages,
        prompts=str(folder / "prompts.safetensors"),
        choices={"random": BASE},
        generate=generate,
        stop_ids=(),
        out="",
    )
    (found,) = [r for r in run_ranks(layout.tp_size * layout.pp_size, forward, request) if r is not None]
    return found


def compare_with(hf: Path, found: Results, *, generate: int = 0) -> Comparison:
    model = load_model(hf, dtype=torch.float32)
    expected = reference_results(model, {"random": TOKENS}, stop=stop_ids(hf), generate=generate)
    if generate:
        expected["tokens/random"] = expected["tokens/random"][:generate]
    return compare("random", TOKENS, expected=expected, found=found, generate=generate)


@pytest.mark.parametrize(
    ("tiny", "tp", "pp", "vp"),
    [(GQA, 1, 1, 1), (GQA, 2, 2, 1), (GQA, 4, 1, 1), (TIED, 3, 2, 1), (TIED, 1, 3, 1), (GQA, 1, 2, 3), (TIED, 2, 3, 1)],
)
def test_sharded_logits_equal_transformers(tmp_path, tiny, tp, pp, vp):
    hf = tiny.write(tmp_path / "hf")
    layout = Layout(tp_size=tp, pp_size=pp, vp_size=vp, vocab_pad_multiple=8)
    import_hf(hf, tmp_path / "ck", layout=layout)
    found = sharded_results(tmp_path / "ck", layout, (6 // (pp * vp),) * (pp * vp))
    assert found["logits/random"].shape == (1, 48, 61)
    comparison = compare_with(hf, found)
    # fp32 rounding over six layers; the documented tolerance is ten times this.
    assert comparison.relative < TOLERANCE / 10
    assert comparison.passed


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (3, 2)])
def test_greedy_continuation_equals_transformers(tmp_path, tp, pp):
    hf = Tiny(config={"eos_token_id": None}).write(tmp_path / "hf")
    layout = Layout(tp_size=tp, pp_size=pp)
    import_hf(hf, tmp_path / "ck", layout=layout)
    found = sharded_results(tmp_path / "ck", layout, (6 // pp,) * pp, generate=10)
    comparison = compare_with(hf, found, generate=10)
    assert (comparison.generated, comparison.generated_equal) == (10, 10)


def swap_rows(name: str):
    def mutate(tensors: dict[str, torch.Tensor]) -> None:
        tensor = tensors[f"model.layers.2.self_attn.{name}.weight"]
        tensor[[0, 1]] = tensor[[1, 0]]

    return mutate


def swap_gate_and_up(tensors: dict[str, torch.Tensor]) -> None:
    gate, up = "model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight"
    tensors[gate], tensors[up] = tensors[up], tensors[gate]


def drop_norm(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.3.post_attention_layernorm.weight"].fill_(1.0)


def drop_final_norm(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"].fill_(1.0)


def shift_layers(tensors: dict[str, torch.Tensor]) -> None:
    layers = {name: t for name, t in tensors.items() if name.startswith("model.layers.")}
    for name, tensor in layers.items():
        _, _, number, rest = name.split(".", 3)
        tensors[f"model.layers.{(int(number) + 1) % 6}.{rest}"] = tensor


def poison(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.5.mlp.down_proj.weight"][0, 0] = math.nan


MUTATIONS = [
    swap_rows("q_proj"),
    swap_rows("k_proj"),
    swap_gate_and_up,
    drop_norm,
    drop_final_norm,
    shift_layers,
    poison,
]


def test_every_mutation_of_the_weights_moves_the_logits_beyond_the_tolerance(tmp_path):
    hf = GQA.write(tmp_path / "hf")
    layout = Layout(tp_size=2, pp_size=2)
    import_hf(hf, tmp_path / "ck", layout=layout)
    found = sharded_results(tmp_path / "ck", layout, (3, 3))
    assert compare_with(hf, found).passed
    for number, mutate in enumerate(MUTATIONS):
        tensors = GQA.tensors()
        mutate(tensors)
        mutated = GQA.write(tmp_path / f"mutated{number}", tensors=tensors)
        assert not compare_with(mutated, found).passed, mutate


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("mlp.linear_fc1.weight", GateUp(gate="mlp.up_proj.weight", up="mlp.gate_proj.weight")),
        ("input_layernorm.weight", Plain("post_attention_layernorm.weight")),
        (
            "self_attention.linear_qkv.weight",
            Qkv(q="self_attn.q_proj.weight", k="self_attn.v_proj.weight", v="self_attn.k_proj.weight"),
        ),
    ],
)
def test_a_wrong_row_of_the_table_is_found_although_the_way_back_undoes_it(tmp_path, monkeypatch, name, wrong):
    table = dict(mapping.LAYER_TABLE)
    if name == "input_layernorm.weight":
        table["pre_mlp_layernorm.weight"] = table[name]
    table[name] = wrong
    tiny = Tiny()
    hf = tiny.write(tmp_path / "hf")
    with monkeypatch.context() as patch:
        patch.setattr(mapping, "LAYER_TABLE", table)
        import_hf(hf, tmp_path / "ck", layout=Layout())
        export_hf(tmp_path / "ck", tmp_path / "back")
    assert (tmp_path / "back" / "model.safetensors").read_bytes() != b""
    assert not compare_with(tmp_path / "back", sharded_results(tmp_path / "ck", Layout(), (6,))).passed


def test_verify_command_passes_the_export_and_names_what_differs(tmp_path):
    hf = GQA.write(tmp_path / "hf")
    runner = CliRunner()
    done = runner.invoke(
        app, ["import", "--from", str(hf), "--to", str(tmp_path / "ck"), "--tensor", "2", "--pipeline", "2"]
    )
    assert done.exit_code == 0, done.output
    done = runner.invoke(app, ["export", "--from", str(tmp_path / "ck"), "--to", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    proof = json.loads(done.stdout)["verify"]
    assert proof["passed"]
    assert proof["layout"] == {"tensor": 2, "pipeline": 2, "virtual": 1}
    assert proof["tensors"] == 57
    # A change too small for the logits is found in the weights.
    tensors = GQA.tensors()
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] *= 1 + 1e-6
    tensors["model.norm.weight"][:] = 1.0
    mutated = GQA.write(tmp_path / "mutated", tensors=tensors)
    done = runner.invoke(app, ["verify", "--from", str(tmp_path / "ck"), "--hf", str(mutated), "--tokens", "20"])
    assert isinstance(done.exception, ConvertError)
    assert done.exception.exit_code == 6
    assert "2 of 57 tensors differ (model.layers.0.mlp.up_proj.weight, model.norm.weight)" in str(done.exception)
    assert "logits differ by" in str(done.exception)
    assert "FAIL" in done.stdout


def test_a_failed_proof_leaves_no_folder(tmp_path):
    hf = Tiny().write(tmp_path / "hf")
    import_hf(hf, tmp_path / "ck", layout=Layout())

    def proof(folder: Path) -> dict[str, object]:
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-4] + b"\0\0\0\x3f")
        verify(tmp_path / "ck", folder, num_tokens=8).require()
        raise AssertionError("the damaged folder passed")

    with pytest.raises(ConvertError, match=r"1 of 57 tensors differ"):
        export_hf(tmp_path / "ck", tmp_path / "out", proof=proof)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ck", "hf"]


def test_a_layout_of_too_many_ranks_is_made_smaller_and_says_so(tmp_path):
    tiny = replace(Tiny(), dtype=torch.bfloat16)
    hf = tiny.write(tmp_path / "hf")
    import_hf(hf, tmp_path / "ck", layout=Layout(tp_size=4, pp_size=3))
    proof = verify(tmp_path / "ck", hf, num_tokens=16)
    assert proof.passed
    assert proof.layout == {"tensor": 4, "pipeline": 2, "virtual": 1}
    assert proof.note == (
        "verified at tensor=4 x pipeline=2: tensor=4 x pipeline=3 would need 12 processes, more than 8"
    )


@pytest.mark.parametrize(
    ("weights", "layout"),
    [("prior", Layout(tp_size=2, pp_size=2)), ("posterior", Layout(tp_size=4)), ("gate", Layout(pp_size=3))],
    ids=["prior", "posterior", "gate"],
)
def test_adapters_and_mixture_equal_the_exported_folder(tmp_path, weights, layout):
    import_hf(Tiny(config={"num_key_value_heads": 4}).write(tmp_path / "hf"), tmp_path / "base", layout=Layout())
    mixture = {"weights": weights, "gate": "linear" if weights == "gate" else None}
    extensions = record(LORA, DORA, IA3, PREFIX, BOTTLENECK, mixture=mixture)
    ck = adapter_checkpoint(tmp_path / "ck", base=tmp_path / "base", extensions=extensions, layout=layout)

    report = export(ck, tmp_path / "out", form="mixture")

    compared = {row["prompt"]: row["relative"] for row in report["verify"]["comparisons"]}
    assert list(compared) == [*(f"a{n}: random" for n in range(5)), "mixture: random"]
    assert max(compared.values()) < TOLERANCE / 2
    damaged = tmp_path / "out" / "mixture.safetensors"
    tensors = {name: tensor + 1e-7 + tensor * 1e-6 for name, tensor in load_file(damaged).items()}
    save_file(tensors, damaged)
    assert verify(ck, tmp_path / "out").differing


def test_merged_and_peft_folders_are_proven(tmp_path):
    import_hf(Tiny(config={"num_key_value_heads": 4}).write(tmp_path / "hf"), tmp_path / "base", layout=Layout())
    ck = adapter_checkpoint(
        tmp_path / "ck", base=tmp_path / "base", extensions=record(LORA, DORA), layout=Layout(tp_size=2)
    )
    for name, options in {
        "merged": {"form": "merged", "dtype": "bf16", "adapter": "a1"},
        "peft": {"form": "peft", "adapter": "a0"},
    }.items():
        report = export(ck, tmp_path / name, **options)
        assert report["verify"]["passed"]
    with pytest.raises(ConvertError, match=r"is not the model of .*: 42 of 57 tensors differ"):
        verify(ck, tmp_path / "merged", adapter="a0").require()
    with pytest.raises(ConvertError, match="--adapter a0 chooses what --as merged or peft writes; --as mixture takes"):
        export(ck, tmp_path / "x", form="mixture", adapter="a0")
    with pytest.raises(ConvertError, match="--dtype bf16 does not go with --as peft"):
        export(ck, tmp_path / "x", form="peft", adapter="a0", dtype="bf16")
