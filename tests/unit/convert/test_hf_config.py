"""Every key of config.json is read as transformers reads it, or the file is refused: judged by the model it builds."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from transformers import LlamaConfig
from transformers.utils import logging

from llama_scale.convert.hf_config import make_hf_config
from llama_scale.spec.hf_config import HfConfig, HfConfigError, read_hf_config
from tests.unit.convert.hf_configs import LLAMA3, ODD, Generated, Reading, configs, transformers_reading

NOT_OF_THE_MODEL = {
    "transformers_version", "output_hidden_states", "return_dict", "chunk_size_feed_forward", "is_encoder_decoder",
    "id2label", "label2id", "problem_type", "architectures",
}  # fmt: skip
"""Fields of every config of transformers; LlamaForCausalLM's weights and logits do not depend on them."""


@pytest.fixture(autouse=True)
def _quiet():
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    yield
    logging.set_verbosity(before)


def our_reading(folder: Path) -> Reading | None:
    """Return what a model of our numbers has, computed in float64 from the published formulas; None: refused."""
    try:
        found = read_hf_config(folder)
    except HfConfigError as error:
        assert error.faults
        assert all(len(fault) < 300 for fault in error.faults)
        return None
    shape = found.shape
    return Reading(
        numbers={
            "vocab_size": shape.vocab_size,
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.ffn_hidden_size,
            "num_hidden_layers": shape.num_layers,
            "head_dim": shape.head_dim,
            "q_rows": shape.num_heads * shape.head_dim,
            "kv_rows": shape.num_kv_heads * shape.head_dim,
            "queries_per_kv": shape.num_heads // shape.num_kv_heads,
            "max_position_embeddings": shape.max_position_embeddings,
            "initializer_range": found.init_std,
            "rms_norm_eps": [shape.rms_norm_eps],
            "tied": shape.tie_word_embeddings,
            # What this package's model is, whatever it is built for.
            "biases": False, "silu": True, "dropout": 0, "whole_heads": True, "windows": None, "alike": True,
            "causal": True,
        },
        inverse_frequencies=torch.tensor(_frequencies(found), dtype=torch.float32),
        attention_scaling=1.0,
    )  # fmt: skip


def _frequencies(found: HfConfig) -> list[float]:
    dim, scaling = found.shape.head_dim, found.shape.rope_scaling
    plain = [found.shape.rope_theta ** (-2 * i / dim) for i in range(dim // 2)]
    if scaling is None:
        return plain
    # Llama 3's reference code: https://github.com/meta-llama/llama-models, `apply_scaling`.
    scaled = []
    for frequency in plain:
        turns = scaling.original_max_position_embeddings * frequency / (2 * math.pi)
        share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        share = min(1.0, max(0.0, share))
        scaled.append((1 - share) * frequency / scaling.factor + share * frequency)
    return scaled


def agree(generated: Generated, folder: Path) -> None:
    theirs, ours = transformers_reading(generated.write(folder)), our_reading(folder)
    if ours is None:
        # A refusal counts where the file is odd, or transformers refuses it too.
        assert generated.odd or theirs is None, generated.config
        return
    assert theirs is not None, f"accepted here, refused by transformers: {generated.odd} {generated.config}"
    assert ours.same(theirs), f"{generated.odd} {generated.config}\n{ours}\n{theirs}"


@settings(max_examples=max(250, settings().max_examples))
@given(generated=configs())
def test_reading_equals_that_of_transformers(generated, tmp_path_factory):
    agree(generated, tmp_path_factory.getbasetemp() / "config")


@settings(max_examples=max(50, settings().max_examples))
@given(generated=configs())
def test_what_an_export_writes_reads_back_in_transformers_as_the_same_model(generated, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "origin"
    theirs, ours = transformers_reading(generated.write(folder)), our_reading(folder)
    if ours is None:
        return
    written = make_hf_config(read_hf_config(folder).shape, dtype="float32", base=generated.config)
    again = Generated(config=written, odd="").write(tmp_path_factory.getbasetemp() / "export")
    assert theirs is not None
    back = transformers_reading(again)
    assert back is not None, written
    assert back.same(theirs)
    assert our_reading(again).same(ours)


def test_every_key_of_transformers_is_generated():
    fields = {field.name for field in dataclasses.fields(LlamaConfig)}
    assert fields - NOT_OF_THE_MODEL <= set(ODD) | {"rope_parameters"}
    assert not LlamaConfig.attribute_map, "an alias of a key has to be read too"


def tiny(**changes: Any) -> dict[str, Any]:
    numbers = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 20, **numbers, **changes}


PLAIN = {
    "LLaMAForCausalLM of the first converters": tiny(architectures=["LLaMAForCausalLM"], max_sequence_length=2048),
    "swish": tiny(hidden_act="swish"),
    "linear RoPE with factor 1": tiny(rope_scaling={"type": "linear", "factor": 1.0}, torch_dtype="bfloat16"),
    "both forms, saying the same": tiny(
        rope_parameters={"rope_type": "default", "rope_theta": 5e5}, rope_scaling={"type": "default"}, rope_theta=5e5
    ),
    "nothing but the type": {"model_type": "llama"},
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_forms_are_read(tmp_path, name):
    folder = Generated(config=PLAIN[name], odd="").write(tmp_path / "hf")
    agree(Generated(config=PLAIN[name], odd=""), folder)


DEFAULT = {"rope_type": "default"}
REFUSED = {
    r"rope_parameters and rope_scaling contradict each other, .*keep the one that the model was trained with": {
        "rope_parameters": {**DEFAULT, "rope_theta": 5e5},
        "rope_scaling": DEFAULT,
    },
    r"rope_scaling\.rope_type is 'llama3' and rope_scaling\.type is 'linear'; keep the one": {
        "rope_scaling": {"rope_type": "llama3", "type": "linear", **LLAMA3}
    },
    r"rope_theta is 1e4 and rope_parameters\.rope_theta is 500000\.0; keep the one".replace("1e4", r"10000\.0"): {
        "rope_theta": 1e4,
        "rope_parameters": {**DEFAULT, "rope_theta": 5e5},
    },
    r"rope_theta is null, not a positive number": {"rope_theta": None},
    r"rope_scaling\.rope_type is null; this version trains": {"rope_scaling": {"rope_type": None}},
    r"rope_scaling\.rope_type 'linear' with factor 4 is not supported, only factor 1\.0": {
        "rope_scaling": {"type": "linear", "factor": 4.0}
    },
    r"rope_scaling\.type is 'dynamic'; this version trains plain RoPE \('default'\) and 'llama3'": {
        "rope_scaling": {"type": "dynamic", "factor": 2.0}
    },
    r"rope_parameters\.full_attention means nothing to rope_type 'default'; remove it": {
        "rope_parameters": {"full_attention": DEFAULT}
    },
    r"rope_scaling\.facotr means nothing to rope_type 'llama3'": {
        "rope_scaling": {"rope_type": "llama3", **LLAMA3, "facotr": 2}
    },
    r"rope_scaling\.original_max_position_embeddings is missing": {
        "rope_scaling": {"rope_type": "llama3", **{k: v for k, v in LLAMA3.items() if not k.startswith("orig")}}
    },
    r"original_max_position_embeddings is 64 and rope_scaling\.original_max_position_embeddings is 32": {
        "original_max_position_embeddings": 64,
        "rope_scaling": {"rope_type": "llama3", **LLAMA3},
    },
    r"rope_scaling\.low_freq_factor=4 is not less than high_freq_factor=4": {
        "rope_scaling": {"rope_type": "llama3", **LLAMA3, "low_freq_factor": 4}
    },
    r"^partial_rotary_factor is 0\.5, not 1\.0: RoPE turns whole heads here$": {"partial_rotary_factor": 0.5},
    r"rope_parameters is \[\], not an object or null": {"rope_parameters": []},
    r"num_hidden_layers is 1000000000, more than the 10,000 that are possible here": {"num_hidden_layers": 10**9},
    r"rms_norm_eps is 1, not a positive number with a decimal point; write 1\.0": {"rms_norm_eps": 1},
    r"num_key_value_heads=3 does not divide num_attention_heads=2": {"num_key_value_heads": 3},
    r"head_dim=5 is odd, and RoPE turns pairs": {"head_dim": 5},
    r"pad_token_id is 20, outside the vocabulary of 20": {"pad_token_id": 20},
    r"eos_token_id is '2', not an integer, a list of integers or null": {"eos_token_id": "2"},
    r"dtype is 'auto', not one of float32": {"dtype": "auto"},
    r"attention_dropout is 0\.1: attention has no dropout here": {"attention_dropout": 0.1},
    r"sliding_window is 4096: attention sees the whole context": {"sliding_window": 4096},
    r"is_causal is false: a token sees nothing behind it here": {"is_causal": False},
    r"is_causal is null: a token sees nothing behind it here": {"is_causal": None},
    r"layer_types is \['sliding_attention'\]: all 1 layers have 'full_attention'": {
        "layer_types": ["sliding_attention"]
    },
    r"configuration_files is \[\]: transformers reads another file": {"configuration_files": []},
}


@pytest.mark.parametrize("message", REFUSED)
def test_refusals_say_what_is_wrong_and_what_to_do(tmp_path, message):
    folder = Generated(config=tiny(**REFUSED[message]), odd="x").write(tmp_path / "hf")
    with pytest.raises(HfConfigError) as caught:
        read_hf_config(folder)
    assert len(caught.value.faults) == 1, caught.value.faults
    assert re.search(message, caught.value.faults[0]), caught.value.faults[0]


def test_another_encoding_is_named(tmp_path):
    for encoding, message in (("utf-16", "is not UTF-8 text; save it as UTF-8"), ("utf-8-sig", "is not JSON")):
        (tmp_path / "config.json").write_text(json.dumps(tiny()), encoding=encoding)
        assert transformers_reading_fails(tmp_path)
        with pytest.raises(HfConfigError, match=message):
            read_hf_config(tmp_path)


def transformers_reading_fails(folder: Path) -> bool:
    try:
        LlamaConfig.from_pretrained(folder)
    except (OSError, ValueError):
        return True
    return False


def test_absurd_sizes_take_no_memory(tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for key in (key for key in ODD if 10**30 in ODD[key]):
        folder = Generated(config=tiny(**{key: 10**17}), odd=key).write(tmp_path / "hf")
        with pytest.raises(HfConfigError, match=f"{key} is 10+, more than the"):
            read_hf_config(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10
