"""transformers' model, streamed: the logits of ``from_pretrained``, and no matrix left in memory."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from llama_scale.convert.import_proof import import_proof
from llama_scale.convert.shards import Layout
from llama_scale.convert.source_model import SourceModel
from llama_scale.errors import ConvertError
from tests.unit.convert.tiny import Tiny

TOKENS = torch.randint(61, (2, 24), generator=torch.Generator().manual_seed(5))
KINDS = {
    "untied, two files": Tiny(files=2),
    "tied, bf16": Tiny(config={"tie_word_embeddings": True, "torch_dtype": "bfloat16"}, dtype=torch.bfloat16),
    "fp16, kv heads": Tiny(config={"num_key_value_heads": 4, "torch_dtype": "float16"}, dtype=torch.float16),
    "scaled RoPE, pad": Tiny(
        config={
            "pad_token_id": 3,
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 5e5, "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
                "original_max_position_embeddings": 16,
            },
        }
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_streamed_logits_are_those_of_from_pretrained(tmp_path, kind):
    folder = KINDS[kind].write(tmp_path / "hf")
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    streamed = SourceModel(folder, rounded=torch.float32)

    with torch.no_grad():
        expected = whole(input_ids=TOKENS).logits
    assert torch.equal(streamed.logits(TOKENS), expected)
    assert torch.equal(streamed.logits(TOKENS), expected), "the second time the weights are read again"
    assert all(parameter.is_meta for parameter in streamed._model.parameters())


def test_weights_are_rounded_as_the_checkpoint_rounded_them(tmp_path):
    folder = Tiny().write(tmp_path / "hf")
    rounded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="eager").float()

    with torch.no_grad():
        expected = rounded(input_ids=TOKENS).logits
    assert torch.equal(SourceModel(folder, rounded=torch.bfloat16).logits(TOKENS), expected)


def test_faults_are_named(tmp_path):
    tensors = Tiny().tensors()
    del tensors["model.layers.5.self_attn.o_proj.weight"]
    folder = Tiny().write(tmp_path / "lacks", tensors=tensors)
    with pytest.raises(
        ConvertError, match=r"has the parameter 'model\.layers\.5\.self_attn\.o_proj\.weight', the files"
    ):
        SourceModel(folder, rounded=torch.float32)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "no-such-function"}))
    with pytest.raises(ConvertError, match=r"transformers cannot build the model of .*lacks: 'no-such-function'"):
        SourceModel(folder, rounded=torch.float32)


def test_numbers_that_logits_may_not_show_are_compared(tmp_path):
    from llama_scale.convert.hf_config import read_shape

    folder = Tiny().write(tmp_path / "hf")
    model, shape = SourceModel(folder, rounded=torch.float32), read_shape(folder)
    frequencies = 10000.0 ** (-torch.arange(0, 6, 2) / 6)
    assert model.differences(shape, frequencies) == ()
    other = shape.model_copy(update={"rms_norm_eps": 1e-6, "max_position_embeddings": 32})
    assert model.differences(other, frequencies * 1.001) == (
        "rms_norm_eps is [1e-05] in transformers' model and [1e-06] in the sharded one",
        "max_position_embeddings is 64 in transformers' model and 32 in the sharded one",
        "RoPE's frequencies are others in transformers' model than in the sharded one",
    )


def test_the_proof_says_what_it_needs_before_anything_is_copied(tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "megatron" else real(name))
    with pytest.raises(ConvertError, match=r"runs the sharded model and needs megatron, not installed .*--no-verify"):
        import_proof(tmp_path, layout=Layout())
