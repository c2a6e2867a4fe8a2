"""Checkpoints of adapters as PEFT folders, merged models and mixtures, on one process each."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from llama_scale.checkpoint.manifest import load_manifest
from llama_scale.convert.assemble import assemble, export_mixture
from llama_scale.convert.export_hf import export_hf
from llama_scale.convert.import_hf import import_hf
from llama_scale.convert.import_peft import import_peft
from llama_scale.convert.peft import export_peft
from llama_scale.convert.reference import load_text_tokenizer
from llama_scale.convert.shards import Layout
from llama_scale.convert.weights import Weights
from llama_scale.errors import ConvertError, LaunchError
from llama_scale.evaluation.assembled import AssembledModel
from tests.live_runs import environment
from tests.task_tokenizer import write_tokenizer
from tests.unit.convert.adapted import BOTTLENECK, DORA, IA3, LORA, PREFIX, RS_LORA, adapter_checkpoint, record
from tests.unit.convert.tiny import Tiny

# PEFT asks transformers by the older name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
TOKENS = torch.randint(61, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    Tiny(config={"num_key_value_heads": 4}).write(folder / "hf")
    import_hf(folder / "hf", folder / "ck", layout=Layout())
    return folder


@torch.no_grad()
def logits(model, **kwargs) -> torch.Tensor:
    return model.eval()(input_ids=TOKENS, **kwargs).logits


def on_base(base: Path, adapter: Path) -> torch.Tensor:
    return logits(PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base / "hf"), adapter))


def whole(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)


@pytest.mark.parametrize("adapter", [LORA, RS_LORA, DORA, IA3], ids=["lora", "rs", "dora", "ia3"])
def test_peft_merged_and_mixture_are_one_model(tmp_path, base, adapter):
    ck = adapter_checkpoint(
        tmp_path / "ck", base=base / "ck", extensions=record(adapter), layout=Layout(tp_size=2, pp_size=2)
    )
    export_peft(ck, tmp_path / "peft")
    export_hf(ck, tmp_path / "merged", merge=True)
    assemble(ck, tmp_path / "whole")

    plain = logits(LlamaForCausalLM.from_pretrained(base / "hf"))
    peft = on_base(base, tmp_path / "peft")
    merged = logits(LlamaForCausalLM.from_pretrained(tmp_path / "merged"))
    model = whole(tmp_path / "whole")

    assert (peft - plain).abs().max() > 0.1
    torch.testing.assert_close(merged, peft, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(model), peft, rtol=1e-4, atol=1e-4)
    model.set_adapter(None)
    torch.testing.assert_close(logits(model), plain, rtol=1e-4, atol=1e-4)


def test_merging_is_accounted_for(tmp_path, base):
    ck = adapter_checkpoint(tmp_path / "ck", base=base / "ck", extensions=record(LORA, PREFIX))
    report = export_hf(ck, tmp_path / "merged", adapter="a0", merge=True, dtype="bf16")

    assert report["adapter"] == "a0" and report["dtype"] == "bfloat16"
    assert len(report["merged"]) == 2 * 7 * 2  # layers, targets, matrices
    assert all(row["slices"] for row in report["sources"].values())


def test_a_folder_loads_without_llama_scale(tmp_path, base):
    extensions = record(LORA, PREFIX, BOTTLENECK, mixture={"weights": "posterior"})
    export_mixture(adapter_checkpoint(tmp_path / "ck", base=base / "ck", extensions=extensions), tmp_path / "mix")
    program = (
        "import sys; sys.modules['llama_scale'] = None\n"
        "import torch; from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "made = model.generate(torch.arange(6).view(2, 3), attention_mask=torch.ones(2, 3), max_new_tokens=2)\n"
        "print(made.shape)"
    )
    shutil.move(tmp_path / "mix", tmp_path / "elsewhere")
    command = [sys.executable, "-c", program, str(tmp_path / "elsewhere")]

    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=tmp_path, timeout=120)

    assert done.stdout.strip() == "torch.Size([2, 5])", done.stderr


def test_the_tokenizer_of_a_mixture_loads_without_a_question(tmp_path, base, monkeypatch):
    export_mixture(adapter_checkpoint(tmp_path / "ck", base=base / "ck", extensions=record(LORA)), tmp_path / "mix")
    write_tokenizer(tmp_path / "mix")

    def asked(_prompt: str = "") -> str:
        raise AssertionError("transformers asks whether to run the code")

    monkeypatch.setattr("builtins.input", asked)
    assert load_text_tokenizer(tmp_path / "mix")("a word")["input_ids"]


def test_only_what_a_folder_has_can_be_chosen(tmp_path, base):
    export_mixture(adapter_checkpoint(tmp_path / "ck", base=base / "ck", extensions=record(LORA)), tmp_path / "mix")
    model = AssembledModel(tmp_path / "mix")
    model.use("a0")
    with pytest.raises(LaunchError, match="mix: there is no adapter 'nobody'; there are: a0"):
        model.use("nobody")
    with pytest.raises(LaunchError, match="mix has no mixture; choose one of its adapters"):
        model.use("mixture")
    (tmp_path / "mix" / "mixing.py").write_text("raise SystemExit('ran')")
    with pytest.raises(LaunchError, match=r"code of its own: mixing\.py; look at it and say --trust-remote-code"):
        AssembledModel(tmp_path / "mix")


@pytest.mark.parametrize("weights", ["prior", "posterior", "gate"])
def test_saving_and_loading_gives_the_same_mixture(tmp_path, base, weights):
    mixture = {"weights": weights, "gate": "linear" if weights == "gate" else None, "adapters": ("a0", "a2")}
    extensions = record(DORA, IA3, BOTTLENECK, mixture=mixture)
    export_mixture(adapter_checkpoint(tmp_path / "ck", base=base / "ck", extensions=extensions), tmp_path / "mix")
    model = whole(tmp_path / "mix")
    before = logits(model)

    model.save_pretrained(tmp_path / "saved")
    again = whole(tmp_path / "saved")

    assert again.adapter_names == ("a0", "a1", "a2")
    torch.testing.assert_close(logits(again), before, rtol=0, atol=5e-5)
    again.set_adapter("a1")
    model.set_adapter("a1")
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=5e-5)


def test_a_base_from_the_seed_is_drawn_again(tmp_path, base):
    ck = adapter_checkpoint(tmp_path / "ck", base=base / "ck", extensions=record(LORA))
    manifest = json.loads((ck / "manifest.json").read_text())
    manifest["base"] = {"kind": "seed", "seed": 3, "init_std": 0.02}
    (ck / "manifest.json").write_text(json.dumps(manifest))

    one, two = Weights(ck), Weights(ck)

    name = "decoder.layers.0.mlp.linear_fc2.weight"
    assert torch.equal(one.tensor(name), two.tensor(name))
    assert one.tensor(name).std().item() == pytest.approx(0.02 / 12**0.5, rel=0.1)
    assert one.digest(name, torch.float32) == "seed:3"
    assemble(ck, tmp_path / "whole")
    assert whole(tmp_path / "whole").adapter_names == ("a0",)


def test_heads_lie_beside_the_model(tmp_path, base):
    data = {"kind": "split_files", "train": "/none.jsonl"}
    task = {"name": "qa", "kind": "qa_extractive", "options": {"data": data}}
    extensions = record({**LORA, "task": "qa"}, tasks=(task,))
    ck = adapter_checkpoint(tmp_path / "ck", base=base / "ck", extensions=extensions)

    report = export_hf(ck, tmp_path / "merged", merge=True)
    assemble(ck, tmp_path / "whole")

    assert report["heads"] == {"qa": "heads/qa.safetensors"}
    weights = Weights(ck)
    names = [name for name in weights.extra if name.startswith("heads.")]
    for folder in ("merged", "whole"):
        tensors = load_file(tmp_path / folder / "heads" / "qa.safetensors")
        assert {f"heads.qa.{name}" for name in tensors} == set(names)
        assert all(torch.equal(tensors[name.removeprefix("heads.qa.")], weights.tensor(name)) for name in names)
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert config["llama_scale"]["tasks"][0]["head"] == "heads/qa.safetensors"


PEFT_CONFIGS = {
    "lora": LoraConfig(
        r=4,
        lora_alpha=9,
        target_modules=["q_proj", "v_proj", "down_proj"],
        rank_pattern={"v_proj": 2},
        alpha_pattern={r"layers\.\d+\.self_attn\.q_proj": 3.0},
        use_rslora=True,
        layers_to_transform=[1, 2],
        task_type="CAUSAL_LM",
    ),
    "dora": LoraConfig(r=4, target_modules="all-linear", use_dora=True),
    "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
}


def peft_folder(base: Path, folder: Path, config) -> Path:
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base / "hf"), config)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", PEFT_CONFIGS)
def test_peft_folders_come_in_and_go_out_again(tmp_path, base, kind):
    source = peft_folder(base, tmp_path / "in", PEFT_CONFIGS[kind])

    import_peft({"x": source}, tmp_path / "ck", base=base / "ck")
    export_peft(tmp_path / "ck", tmp_path / "out")
    assemble(tmp_path / "ck", tmp_path / "whole")

    want = on_base(base, source)
    torch.testing.assert_close(on_base(base, tmp_path / "out"), want, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(whole(tmp_path / "whole")), want, rtol=1e-4, atol=1e-4)
    assert load_manifest(tmp_path / "ck").base.path == str(base / "ck")


def bad_import(base: Path, folder: Path, tmp_path: Path, match: str, *, name: str = "x") -> None:
    with pytest.raises(ConvertError, match=match):
        import_peft({name: folder}, tmp_path / "new", base=base / "ck")
    assert not (tmp_path / "new").exists()


def changed(source: Path, folder: Path, **settings) -> Path:
    shutil.copytree(source, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | settings))
    return folder


def test_peft_folders_that_cannot_come_in(tmp_path, base):
    good = peft_folder(base, tmp_path / "good", LoraConfig(r=2, target_modules=["q_proj"]))
    tensors = load_file(good / "adapter_model.safetensors")
    file = "adapter_model.safetensors"

    def with_tensors(name: str, new: dict[str, torch.Tensor]) -> Path:
        folder = changed(good, tmp_path / name)
        save_file({k: t.clone() for k, t in new.items()}, folder / file)
        return folder

    def put(name: str, **settings) -> Path:
        return changed(good, tmp_path / name, **settings)

    bad_import(base, put("adalora", peft_type="ADALORA"), tmp_path, "type 'ADALORA'; IA3, LORA can be imported")
    bad_import(base, put("bias", bias="all"), tmp_path, r"bias='all' is not supported \(only 'none'\)")
    bad_import(base, put("save", modules_to_save=["lm_head"]), tmp_path, r"modules_to_save=\['lm_head'\] is not supp")
    bad_import(base, put("pissa", init_lora_weights="pissa"), tmp_path, "init_lora_weights='pissa' is not supported")
    bad_import(base, put("flux", flux=2), tmp_path, "flux=2 is not supported")
    bad_import(base, put("dora", use_dora=True), tmp_path, "use_dora=True, and q_proj has no lora_magnitude_vector")
    alphas = put("alpha", alpha_pattern={"layers.1.self_attn.q_proj": 5})
    bad_import(base, alphas, tmp_path, "alpha_pattern gives q_proj other alphas in other layers")
    bad_import(base, good, tmp_path, "'a b' is no name for an adapter", name="a b")
    bad_import(base, tmp_path, tmp_path, "has no adapter_config.json")

    renamed = {k.replace("q_proj", "w_proj"): t for k, t in tensors.items()}
    bad_import(base, with_tensors("target", renamed), tmp_path, "w_proj.lora_A.weight', which is not of a LORA adapter")
    deeper = {k.replace("layers.5.", "layers.7."): t for k, t in tensors.items()}
    bad_import(base, with_tensors("deep", deeper), tmp_path, "touches layer 7, the base has 0 to 5: it is of another")
    wide = {k: torch.ones(2, 30) if "lora_A" in k else t for k, t in tensors.items()}
    bad_import(base, with_tensors("wide", wide), tmp_path, r"has the shape \[2, 30\], the base needs \[2, 24\]")
    mixed = {k: torch.ones(3, 24) if "layers.2." in k and "lora_A" in k else t for k, t in tensors.items()}
    bad_import(base, with_tensors("mixed", mixed), tmp_path, "has other tensors on q_proj in layer 2 than in layer 0")
    half = {k: t for k, t in tensors.items() if "lora_B" not in k}
    bad_import(base, with_tensors("half", half), tmp_path, "lacks a tensor for .*lora_B; the folder is incomplete")
    bad_import(base, with_tensors("empty", {}), tmp_path, "holds no tensors")

    pickled = put("pickled")
    (pickled / file).rename(pickled / "adapter_model.bin")
    bad_import(base, pickled, tmp_path, "only the pickled adapter_model.bin, which runs code")
    (pickled / "adapter_model.bin").unlink()
    bad_import(base, pickled, tmp_path, f"has no {file}")
    import_peft({"x": good}, tmp_path / "adapters", base=base / "ck")
    with pytest.raises(ConvertError, match="holds adapters or heads; give the checkpoint of the base alone"):
        import_peft({"y": good}, tmp_path / "new", base=tmp_path / "adapters")


def test_ia3_on_other_layers_is_refused(tmp_path, base):
    folder = peft_folder(base, tmp_path / "in", IA3Config(target_modules=["q_proj"], feedforward_modules=[]))
    bad_import(base, folder, tmp_path, "it scales the output of q_proj; IA3 here scales the outputs of k_proj")


def test_exports_that_are_refused(tmp_path, base):
    ck = adapter_checkpoint(tmp_path / "ck", base=base / "ck", extensions=record(LORA, PREFIX))

    def refused(match: str, function, *args, **kwargs) -> None:
        with pytest.raises(ConvertError, match=match):
            function(ck, tmp_path / "out", *args, **kwargs)
        assert not (tmp_path / "out").exists()

    refused("holds adapters .a0, a1., which a plain model has no place for", export_hf)
    refused("several adapters; choose one with --adapter: a0, a1", export_hf, merge=True)
    refused("has no adapter 'a7'; it has a0, a1", export_peft, adapter="a7")
    refused("'a1' .prefix. cannot be merged: it adds positions", export_hf, merge=True, adapter="a1")
    refused("kind 'prefix', which has no PEFT format", export_peft, adapter="a1")
    with pytest.raises(ConvertError, match="has no adapters, so it is no mixture"):
        export_mixture(base / "ck", tmp_path / "out")
    with pytest.raises(ConvertError, match="has no adapters; export it without"):
        export_peft(base / "ck", tmp_path / "out")


def test_a_base_that_moved_or_changed(tmp_path, base):
    shutil.copytree(base / "ck", tmp_path / "base")
    ck = adapter_checkpoint(tmp_path / "ck", base=tmp_path / "base", extensions=record(IA3))
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(ConvertError, match="which is not there, or damaged; say where it is now with --base FOLDER"):
        export_peft(ck, tmp_path / "out")
    export_peft(ck, tmp_path / "out", base=tmp_path / "moved")

    Tiny(config={"num_key_value_heads": 4}, seed=9).write(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "other", layout=Layout())
    with pytest.raises(ConvertError, match=r"is not the base of checkpoint .*: its weights have the digest"):
        export_hf(ck, tmp_path / "out2", merge=True, base=tmp_path / "other")
    with pytest.raises(ConvertError, match="holds its base itself; leave it out"):
        Weights(base / "ck", base=base / "ck")
