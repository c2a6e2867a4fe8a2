"""Python files that somebody plants in a folder are compared, never run, unless the user trusts them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from typer.testing import CliRunner

from llama_scale.cli.eval import app as eval_app
from llama_scale.cli.generate import app as generate_app
from llama_scale.cli.search import app as search_app
from llama_scale.convert import foreign_code as comparing
from llama_scale.convert import modelling
from llama_scale.convert.assemble import assemble, export_mixture
from llama_scale.convert.compared import compared
from llama_scale.convert.export_hf import export_hf
from llama_scale.convert.foreign_code import foreign_code, release_record
from llama_scale.convert.hf_mixture.modeling_llama_scale import LlamaScaleForCausalLM
from llama_scale.convert.import_hf import import_hf
from llama_scale.convert.models import sharded_model
from llama_scale.convert.peft import export_peft
from llama_scale.convert.reference import load_model, load_text_tokenizer
from llama_scale.convert.request import Request
from llama_scale.convert.shards import Layout
from llama_scale.convert.verify import verify
from llama_scale.convert.weights import Weights
from llama_scale.errors import ConvertError, LlamaScaleError
from tests.unit.convert.adapted import LORA, PREFIX, adapter_checkpoint, record
from tests.unit.convert.lines import CHAT, make_run, write_folder
from tests.unit.convert.plants import MIXTURE_PLANTS, OURS, PLAIN_PLANTS, Plant, add, planted

# PEFT asks transformers by the older name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
PROMPT = ("--prompt", "a", "--max-new-tokens", "1")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, adapters on it with a gate, their run with a chat and a search task, and exports."""
    folder = tmp_path_factory.mktemp("made")
    import_hf(write_folder(folder / "source"), folder / "base", layout=Layout())
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "query": "q"}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row | {"positive": "p"}) + "\n" for row in rows * 3))
    (folder / "corpus.jsonl").write_text('{"doc_id": 1, "text": "a"}\n')
    data = {"kind": "split_files", "train": str(folder / "rows.jsonl"), "test": str(folder / "rows.jsonl")}
    tasks = (
        CHAT | {"options": {"data": data, "max_new_tokens": 2}},
        {"name": "find", "kind": "semantic_search", "options": {"data": data, "max_query_tokens": 8}},
    )
    mixture = {"weights": "gate", "gate": "linear"}
    adapters = record(LORA, PREFIX, mixture=mixture, tasks=tasks)
    adapter_checkpoint(folder / "adapters", base=folder / "base", extensions=adapters)
    make_run(folder / "run", folder / "adapters", tokenizer=folder / "source", tasks=tasks)
    export_mixture(folder / "adapters", folder / "mixture")
    assemble(folder / "run" / "checkpoints" / "step-00000001", folder / "assembled")
    export_hf(folder / "base", folder / "plain")
    return folder


def refuses(app: Any, *arguments: str | Path) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert isinstance(done.exception, LlamaScaleError), (done.output, done.exception)
    return str(done.exception)


@pytest.mark.parametrize(
    "kind", [*((True, name) for name in MIXTURE_PLANTS), *((False, name) for name in PLAIN_PLANTS)]
)
def test_planted_code_runs_with_consent_alone(made, tmp_path, kind):
    is_mixture, name = kind
    plant = (MIXTURE_PLANTS if is_mixture else PLAIN_PLANTS)[name]
    marker = planted(made / ("mixture" if is_mixture else "plain"), tmp_path / "hf", plant)

    said = refuses(generate_app, tmp_path / "hf", *PROMPT)
    for load in (load_model, load_text_tokenizer):
        with pytest.raises(ConvertError, match="brings code of its own"):
            load(tmp_path / "hf", **({"dtype": torch.float32} if load is load_model else {}))
    assert "brings code of its own: " in said and "; look at it and say --trust-remote-code" in said
    assert not marker.exists()

    # The code is live: this is what the folder does where it is trusted.
    if name == "the tokenizer":
        with pytest.raises(ConvertError, match="cannot load the tokenizer"):  # the planted file has no such class
            load_text_tokenizer(tmp_path / "hf", trust_code=True)
    elif name != "another repository":  # which would be fetched
        CliRunner().invoke(generate_app, [str(tmp_path / "hf"), *PROMPT, "--trust-remote-code"])
    assert marker.exists() == (name != "another repository")


def test_files_that_nothing_runs_are_no_code(made, tmp_path):
    """As scripts that lie in a plain folder, whose model is transformers' own."""
    marker = planted(made / "plain", tmp_path / "hf", add("handler.py"))
    assert foreign_code(tmp_path / "hf") is None
    assert CliRunner().invoke(generate_app, [str(tmp_path / "hf"), *PROMPT]).exit_code == 0
    marker = planted(made / "mixture", tmp_path / "mix", add(f"__pycache__/{OURS}.cpython-311.pyc"))
    assert CliRunner().invoke(generate_app, [str(tmp_path / "mix"), *PROMPT]).exit_code == 0
    assert not marker.exists()
    planted(made / "mixture", tmp_path / "more", add("adapters/a0/extra.py"))
    assert foreign_code(tmp_path / "more") == "adapters/a0/extra.py"


def commands(made: Path, model: Path, tmp_path: Path) -> dict[str, tuple[Any, ...]]:
    return {
        "generate": (generate_app, model, *PROMPT),
        "eval": (eval_app, model, "--task", "chat", "--with", "a0", "--resamples", "100"),
        "search": (search_app, "index", model, made / "corpus.jsonl", "--task", "find", "--out", tmp_path / "index"),
    }


def copied_run(made: Path, tmp_path: Path, plant: Plant) -> tuple[Path, Path, Path]:
    """Copy the run with code planted in its assembled folder; return the run, that folder and the marker."""
    run = tmp_path / "run"
    shutil.copytree(made / "run", run)
    folder = run / "assembled" / "step-00000001"
    folder.parent.mkdir()
    marker = planted(made / "assembled", folder, plant)
    return run, folder, marker


@pytest.mark.parametrize("command", ["generate", "eval", "search"])
def test_what_is_planted_in_a_copied_run_does_not_run(made, tmp_path, command):
    run, folder, marker = copied_run(made, tmp_path, MIXTURE_PLANTS["the modelling file"])
    app, *arguments = commands(made, run, tmp_path)[command]
    said = refuses(app, *arguments)
    assert f"{folder} brings code of its own: modeling_llama_scale.py; remove the folder, which is then made" in said
    assert not marker.exists()


@pytest.mark.parametrize("name", ["another class", "a script"])
def test_a_planted_folder_of_a_run_is_made_anew_when_it_is_removed(made, tmp_path, name):
    run, folder, marker = copied_run(made, tmp_path, MIXTURE_PLANTS.get(name, add("script.py")))
    assert "brings code of its own: " in refuses(generate_app, run, *PROMPT)
    shutil.rmtree(folder)
    done = CliRunner().invoke(generate_app, [str(run), *PROMPT])
    assert done.exit_code == 0, (done.output, done.exception)
    assert not marker.exists()


@pytest.mark.parametrize("name", MIXTURE_PLANTS)
def test_a_foreign_mixture_is_not_run_to_be_verified(made, tmp_path, name):
    marker = planted(made / "mixture", tmp_path / "hf", MIXTURE_PLANTS[name])
    with pytest.raises(ConvertError, match=r"brings code of its own: .*; look at it and say --trust-remote-code"):
        verify(made / "adapters", tmp_path / "hf")
    assert not marker.exists()


@pytest.mark.parametrize("name", ["another class", "another repository", "the tokenizer"])
def test_a_plain_folder_with_code_is_verified_as_a_llama(made, tmp_path, name):
    marker = planted(made / "plain", tmp_path / "hf", PLAIN_PLANTS[name])
    other = compared(Weights(made / "base"), tmp_path / "hf")
    assert type(other.model()) is LlamaForCausalLM
    assert other.note == "the folder's own code was not run: compared as transformers' LLaMA"
    assert not marker.exists()
    if name == "another class":
        with pytest.raises(ConvertError, match="transformers cannot load"):  # the planted file has no such class
            compared(Weights(made / "base"), tmp_path / "hf", trust_code=True).model()
        assert marker.exists()


def test_what_an_export_writes_runs_as_the_installed_classes(made, tmp_path):
    model = load_model(made / "mixture", dtype=torch.float32)
    assert type(model) is LlamaScaleForCausalLM
    theirs = AutoModelForCausalLM.from_pretrained(made / "mixture", trust_remote_code=True)
    assert type(theirs) is not LlamaScaleForCausalLM
    tokens = torch.arange(20).view(2, 10)
    with torch.no_grad():
        for choose in ("a0", "a1", None):
            for one in (model, theirs):
                one.set_adapter(choose)
            torch.testing.assert_close(model(tokens).logits, theirs(tokens).logits, rtol=0, atol=0)
        model.set_mixture()
        theirs.set_mixture()
        torch.testing.assert_close(model(tokens).logits, theirs(tokens).logits, rtol=0, atol=0)
    tokenizer = AutoTokenizer.from_pretrained(made / "mixture", trust_remote_code=True)
    assert load_text_tokenizer(made / "mixture")("a word").input_ids == tokenizer("a word").input_ids
    theirs.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    assert foreign_code(tmp_path / "saved") is None


def test_files_of_a_released_version_are_known(made, tmp_path, monkeypatch):
    released = release_record()
    (tmp_path / "released.json").write_text(json.dumps({"0.0": released | {"files": {}}, "0.1": released}))
    monkeypatch.setattr(comparing, "_RELEASED", tmp_path / "released.json")
    newer = modelling._source
    monkeypatch.setattr(modelling, "_source", lambda module: newer(module) + "\n# newer\n")
    assert foreign_code(made / "mixture") is None
    for name in ("the modelling file", "an adapter's file", "a file it imports"):
        planted(made / "mixture", tmp_path / name, MIXTURE_PLANTS[name])
        assert foreign_code(tmp_path / name) is not None
    (tmp_path / "released.json").write_text("{}")
    assert "mixing.py" in str(foreign_code(made / "mixture"))


def test_version_0_1_is_released():
    table = json.loads(comparing._RELEASED.read_text())["0.1.0"]
    assert {OURS, "mixing", "adapted", "adapter", "gate", "adapter_lora", "gate_linear"} <= table["files"].keys()
    assert table["classes"].items() >= {"adapter_lora": "Lora", "gate_linear": "LinearGate"}.items()
    assert release_record().keys() == table.keys()


def changed(source: Path, target: Path, file: str, change: Callable[[dict[str, Any]], None]) -> Path:
    shutil.copytree(source, target)
    data = json.loads((target / file).read_text())
    change(data)
    (target / file).write_text(json.dumps(data))
    return target


def test_a_mixture_that_says_what_no_export_says(made, tmp_path):
    unknown = changed(
        made / "mixture", tmp_path / "a", "config.json", lambda c: c["llama_scale"]["adapters"][0].update(kind="evil")
    )
    assert "not installed here" in str(foreign_code(unknown))
    empty = changed(made / "mixture", tmp_path / "b", "config.json", lambda c: c.update(llama_scale=[]))
    with pytest.raises(ConvertError, match="does not hold what an export writes"):
        load_model(empty, dtype=torch.float32)
    nameless = changed(
        made / "mixture", tmp_path / "c", "config.json", lambda c: c["llama_scale"]["adapters"][0].pop("file")
    )
    with pytest.raises(ConvertError, match="without its name or its file"):
        verify(made / "adapters", nameless)
    (changed(made / "mixture", tmp_path / "d", "config.json", lambda c: None) / "gate.py").unlink()
    assert foreign_code(tmp_path / "d") == "gate.py"
    os.mkfifo(changed(made / "mixture", tmp_path / "e", "config.json", lambda c: None) / "pipe.py")
    assert foreign_code(tmp_path / "e") == "pipe.py"


def test_attention_kernels_are_not_fetched(made, tmp_path):
    folder = changed(
        made / "plain", tmp_path / "hf", "config.json", lambda c: c.update(attn_implementation="someone/kernel")
    )
    assert load_model(folder, dtype=torch.float32).config._attn_implementation == "sdpa"


def test_an_adapter_beside_a_model_is_not_added_unasked(made, tmp_path):
    shutil.copytree(made / "plain", tmp_path / "hf")
    export_peft(made / "adapters", tmp_path / "peft", adapter="a0")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(tmp_path / "peft" / name, tmp_path / "hf" / name)
    with pytest.raises(ConvertError, match=r"holds a model and an adapter \(adapter_config.json\)"):
        load_model(tmp_path / "hf", dtype=torch.float32)


def test_modules_that_a_peft_folder_names_are_not_imported(made, tmp_path, monkeypatch):
    export_peft(made / "adapters", tmp_path / "peft", adapter="a0")
    marker = tmp_path / "ran"
    (tmp_path / "evil_core.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = tmp_path / "peft" / "adapter_config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"megatron_config": {"a": 1}, "megatron_core": "evil_core"})
    )
    with pytest.raises(ConvertError, match=r"megatron_config=.* is not supported"):
        verify(made / "adapters", tmp_path / "peft", adapter="a0")
    assert not marker.exists()


def test_the_process_of_a_proof_imports_nothing_from_the_folder_it_is_started_in(tmp_path, monkeypatch):
    marker = tmp_path / "ran"
    (tmp_path / "torch.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    request = Request(
        checkpoint="/nowhere", base=None, dtype="float32", tp_size=1, pp_size=1, vp_size=1, stage_layers=(1,),
        prompts="/nowhere", choices={}, generate=0, stop_ids=(), out="/nowhere",
    )  # fmt: skip
    with (
        pytest.raises(ConvertError, match="the sharded model could not be run"),
        sharded_model(request, folder=tmp_path),
    ):
        pass
    assert not marker.exists()
