"""An import is proven against transformers on its source folder, and nothing is left of one that is not."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from llama_scale.cli.convert import app
from llama_scale.convert import import_hf as importing
from llama_scale.convert import import_proof as proving
from llama_scale.convert import mapping
from llama_scale.convert.import_hf import import_hf
from llama_scale.convert.import_proof import import_proof
from llama_scale.convert.mapping import Plain, Qkv
from llama_scale.convert.proof import TOLERANCE
from llama_scale.convert.request import Request
from llama_scale.convert.shards import Layout
from llama_scale.errors import ConvertError
from llama_scale.train.forward import forward
from tests.engines.harness import run_ranks
from tests.unit.convert.tiny import Tiny

SCALING = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
GQA = Tiny(
    config={
        "num_attention_heads": 24,
        "rope_scaling": SCALING | {"original_max_position_embeddings": 16},
        "max_position_embeddings": 100,
    }
)
TIED = Tiny(config={"tie_word_embeddings": True, "hidden_act": "swish"}, dtype=torch.bfloat16)


@contextlib.contextmanager
def forked(request: Request, *, folder: Path) -> Iterator[None]:
    """Run the sharded model on ranks of the test's fork server, which has the imports already."""
    del folder
    yield
    found = run_ranks(request.tp_size * request.pp_size, forward, request)
    save_file(next(result for result in found if result is not None), request.out)


@pytest.fixture(autouse=True)
def _fork(request, monkeypatch):
    if "by_command" not in request.fixturenames:
        monkeypatch.setattr(proving, "sharded_model", forked)


def proven(source: Path, target: Path, layout: Layout, *, dtype: str | None = None) -> dict[str, object]:
    import_hf(source, target, layout=layout, dtype=dtype, proof=import_proof(source, layout=layout))
    found: dict[str, object] = json.loads((target / "report.json").read_text())["verify"]
    return found


@pytest.mark.parametrize(
    ("tiny", "layout", "dtype", "note"),
    [
        (GQA, Layout(tp_size=2, pp_size=2, vocab_pad_multiple=8), None, ""),
        (GQA, Layout(pp_size=3, vp_size=2), "bf16", "weights rounded to bf16 on both sides"),
        (TIED, Layout(tp_size=3, pp_size=2, stage_layers=(4, 2)), None, ""),
        (TIED, Layout(), "fp32", ""),
        (replace(GQA, dtype=torch.float16, files=2), Layout(tp_size=4), "fp32", ""),
        (
            GQA,
            Layout(tp_size=4, pp_size=3),
            None,
            "verified at tensor=4 x pipeline=2: tensor=4 x pipeline=3 would need",
        ),
    ],
    ids=["gqa", "virtual, rounded", "tied, uneven", "tied, one process", "fp16", "many ranks"],
)
def test_imports_are_proven_at_their_layout(tmp_path, tiny, layout, dtype, note):
    found = proven(tiny.write(tmp_path / "hf"), tmp_path / "ck", layout, dtype=dtype)
    assert found["passed"]
    assert found["note"].startswith(note) if note else found["note"] == ""
    assert (found["differing"], found["numbers"]) == ([], [])
    assert "checkpoint" not in found
    (row,) = found["comparisons"]
    assert (row["prompt"], row["tokens"]) == ("random", 100 if "rope_scaling" in tiny.config else 64)
    assert row["relative"] < TOLERANCE / 10


def read_otherwise(**changes: object) -> Callable[[pytest.MonkeyPatch], None]:
    """Let the import take other numbers from config.json than transformers does."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        real = importing.read_shape
        monkeypatch.setattr(importing, "read_shape", lambda folder: real(folder).model_copy(update=changes))

    return patch


def mapped_otherwise(name: str, wrong: object) -> Callable[[pytest.MonkeyPatch], None]:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mapping, "LAYER_TABLE", mapping.LAYER_TABLE | {name: wrong})

    return patch


def copied_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Change one element by one bit, far too little for the logits."""
    real = importing._Copier._load

    def load(self, parameter, box):
        tensor = real(self, parameter, box).clone()
        if parameter.name == "decoder.layers.3.mlp.linear_fc2.weight":
            tensor.view(torch.int32).view(-1)[0] ^= 1
        return tensor

    monkeypatch.setattr(importing._Copier, "_load", load)


WRONG = {
    r"rms_norm_eps is \[1e-05\] in transformers' model and \[1e-06\] in the sharded one": read_otherwise(
        rms_norm_eps=1e-6
    ),
    r"RoPE's frequencies are others .*; logits differ by": read_otherwise(rope_theta=500000.0),
    r"RoPE's frequencies are others in transformers' model than in the sharded one; logits": read_otherwise(
        rope_scaling=None
    ),
    r"made of it: logits differ by .* on the prompt 'random'": mapped_otherwise(
        "self_attention.linear_qkv.weight",
        Qkv(q="self_attn.q_proj.weight", k="self_attn.v_proj.weight", v="self_attn.k_proj.weight"),
    ),
    r"made of it: 1 of 57 tensors differ \(model\.layers\.3\.mlp\.down_proj\.weight\)": copied_otherwise,
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_import_is_named_and_leaves_nothing(tmp_path, monkeypatch, message):
    source = GQA.write(tmp_path / "hf")
    WRONG[message](monkeypatch)
    with pytest.raises(ConvertError, match=message) as caught:
        proven(source, tmp_path / "ck", Layout(tp_size=2))
    assert "nothing was written" in str(caught.value)
    assert "--no-verify" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_swapped_norm_is_found(tmp_path, monkeypatch):
    table = {"input_layernorm.weight": Plain("post_attention_layernorm.weight")}
    table["pre_mlp_layernorm.weight"] = Plain("input_layernorm.weight")
    monkeypatch.setattr(mapping, "LAYER_TABLE", mapping.LAYER_TABLE | table)
    with pytest.raises(ConvertError, match="logits differ by"):
        proven(TIED.write(tmp_path / "hf"), tmp_path / "ck", Layout())


def test_weights_that_are_no_numbers_are_named(tmp_path):
    tensors = GQA.tensors()
    tensors["model.layers.5.mlp.down_proj.weight"][0, 0] = float("nan")
    source = GQA.write(tmp_path / "hf", tensors=tensors)
    with pytest.raises(
        ConvertError, match=r"holds NaN or infinite values in model\.layers\.5\.mlp\.down_proj\.weight, "
    ):
        proven(source, tmp_path / "ck", Layout())
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    import_hf(source, tmp_path / "ck", layout=Layout())


def test_memory_limit_is_that_of_the_proof_too(tmp_path):
    source = GQA.write(tmp_path / "hf")
    with pytest.raises(
        ConvertError, match=r"the proof may need up to 0\.63 GB .*--max-ram allows 0\.50; .*--no-verify"
    ):
        import_proof(source, layout=Layout(), max_ram_bytes=500_000_000)


def test_the_command_proves_by_default_with_a_text_where_there_is_a_tokenizer(tmp_path, by_command):
    source = GQA.write(tmp_path / "hf")
    (source / "tokenizer.json").write_text(TOKENIZER)
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    arguments = ["import", "--from", str(source), "--to", str(tmp_path / "ck"), "--tensor", "2", "--max-ram", "1.5GB"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "; logits equal to transformers' within " in done.stdout
    found = json.loads((tmp_path / "ck" / "report.json").read_text())["verify"]
    assert [row["prompt"] for row in found["comparisons"]] == ["random", "text"]
    (source / "tokenizer.json").write_text("{}")
    found = proven(source, tmp_path / "again", Layout())
    assert [row["prompt"] for row in found["comparisons"]] == ["random"]
    assert found["note"].startswith("no text was compared: transformers cannot load the tokenizer of ")


@pytest.fixture
def by_command() -> None:
    """Start the sharded model's processes as the command does."""


TOKENIZER = json.dumps(
    {
        "version": "1.0",
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "The": 1, "of": 2, "is": 3}, "unk_token": "[UNK]"},
        "pre_tokenizer": {"type": "Whitespace"},
        "added_tokens": [],
    }
)
