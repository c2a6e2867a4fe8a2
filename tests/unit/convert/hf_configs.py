"""Generated config.json files of LLaMAs, and what transformers makes of each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


@dataclass(frozen=True, kw_only=True)
class Generated:
    """A config.json; ``odd`` names the key that says something unusual, wrong or contradictory, "" for none."""

    config: dict[str, Any]
    odd: str

    def write(self, folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        return folder


@st.composite
def plain_configs(draw: st.DrawFn) -> dict[str, Any]:
    """What tools write for plain LLaMAs: any key absent, null where it may be, old and new forms of RoPE."""
    heads = draw(st.sampled_from([1, 2, 4]))  # divisors of 32, which count where the key is absent
    config: dict[str, Any] = {
        "architectures": draw(st.sampled_from([["LlamaForCausalLM"], ["LLaMAForCausalLM"], None])),
        "vocab_size": draw(st.integers(8, 40)),
        "hidden_size": heads * draw(st.sampled_from([2, 4, 6])),
        "intermediate_size": draw(st.integers(1, 30)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "num_key_value_heads": draw(st.sampled_from([None, *(n for n in range(1, heads + 1) if heads % n == 0)])),
        "head_dim": draw(st.sampled_from([None, 2, 4, 8])),
        "hidden_act": draw(st.sampled_from(["silu", "swish"])),
        "max_position_embeddings": draw(st.integers(1, 4096)),
        "initializer_range": draw(st.sampled_from([0.02, 0.5, 1.0])),
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-5, 0.1])),
        "use_cache": draw(st.booleans()),
        "pad_token_id": draw(st.sampled_from([None, 0, -1, 7])),
        "bos_token_id": draw(st.sampled_from([None, 1, 128000])),
        "eos_token_id": draw(st.sampled_from([None, 2, [2, 3], -1])),
        "pretraining_tp": draw(st.sampled_from([None, 1, 2])),
        "tie_word_embeddings": draw(st.booleans()),
        "attention_bias": False,
        "attention_dropout": draw(st.sampled_from([0, 0.0, None])),
        "mlp_bias": False,
        "dtype": draw(st.sampled_from(["float32", "bfloat16", None])),
        "torch_dtype": draw(st.sampled_from(["float16", "bfloat16", None])),
        "sliding_window": None,
        "max_sequence_length": 16,  # Vicuna's: transformers ignores it
    }
    names = st.lists(st.sampled_from(sorted(config)), unique=True, max_size=4)
    return {
        "model_type": "llama",
        **{key: value for key, value in config.items() if key not in draw(names)},
        **draw(plain_rope()),
    }


@st.composite
def plain_rope(draw: st.DrawFn) -> dict[str, Any]:
    theta = draw(st.sampled_from([None, 10000, 10000.0, 500000.0, 2.5]))
    inside = {} if theta is None else {"rope_theta": theta}
    kind_key = draw(st.sampled_from([("rope_type",), ("type",), ("rope_type", "type")]))
    kind, numbers = draw(
        st.sampled_from([("default", {}), ("linear", {"factor": 1.0}), ("linear", {"factor": 1}), ("llama3", LLAMA3)])
    )
    if kind == "llama3" and draw(st.booleans()):
        numbers = {key: int(value) for key, value in LLAMA3.items()}
    table = dict.fromkeys(kind_key, kind) | numbers
    partial = draw(st.sampled_from([{}, {}, {"partial_rotary_factor": 1.0}]))
    return draw(
        st.sampled_from(
            [
                inside,
                inside | partial | {"rope_scaling": None},
                inside | {"rope_scaling": None, "rope_parameters": None},
                inside | partial | {"rope_scaling": table},
                {"rope_parameters": table | inside | partial},
                inside | {"rope_parameters": table | inside},
                inside | {"rope_parameters": table, "rope_scaling": {}},
            ]
        )
    )


_WRONG_COUNTS: list[Any] = [None, 2.0, True, "2", 0, -1, [2], 10**9, 10**30]
_WRONG_NUMBERS: list[Any] = [None, 1, True, "1", 0.0, -1.0, 2.0, float("nan"), float("inf")]
_WRONG_FLAGS: list[Any] = [None, 0, 1, "false", True]
_COUNTS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
ODD: dict[str, list[Any]] = {
    **dict.fromkeys((*_COUNTS, "num_key_value_heads", "head_dim", "max_position_embeddings"), _WRONG_COUNTS),
    "initializer_range": _WRONG_NUMBERS,
    "rms_norm_eps": _WRONG_NUMBERS,
    "rope_theta": [*_WRONG_NUMBERS, 0, {}],
    "attention_dropout": [0.1, True, "0", -1],
    "use_cache": _WRONG_FLAGS,
    "tie_word_embeddings": _WRONG_FLAGS,
    "attention_bias": _WRONG_FLAGS,
    "mlp_bias": _WRONG_FLAGS,
    "hidden_act": [None, "gelu", "SiLU", "relu", 1],
    "pad_token_id": [10**6, -(10**6), 1.0, "0", [0]],
    "bos_token_id": [1.0, "1", [1]],
    "eos_token_id": ["2", 2.0, True],
    "pretraining_tp": ["1", 1.0],
    "dtype": ["auto", "torch.bfloat16", "none", 3],
    "torch_dtype": ["auto", "torch.bfloat16", "none", 3],
    "partial_rotary_factor": [0.5, None, True, 1],
    "original_max_position_embeddings": [None, 16, 32],
    "is_causal": [False, None, True],
    "layer_types": [["sliding_attention"], ["full_attention"], None, "x"],
    "per_layer_config": [{"0": {"intermediate_size": 3}}, {}],
    "quantization_config": [{"bits": 4}],
    "rope_scaling": [
        {"type": "linear", "factor": 2.0},
        {"rope_type": "default", "rope_theta": 77.0},
        [],
        "linear",
        2.0,
    ],
    "rope_parameters": [{"rope_type": "default", "rope_theta": 77.0}, {"rope_type": "llama3"}, [], "x"],
}
"""Key -> values that some tool, hand or damage may leave there."""

ODD_ROPE: dict[str, list[Any]] = {
    "rope_type": [None, "default", "linear", "llama3", "dynamic", "yarn", "longrope", "proportional", "su", 3],
    "type": [None, "default", "linear", "llama3", "dynamic", "yarn"],
    "rope_theta": [None, 99.0, "1e4", 0, -5.0],
    "factor": [None, 1.0, 4.0, 0.5, "1.0", 0],
    "low_freq_factor": [None, 0, 4.0, 9.0, "1"],
    "high_freq_factor": [None, 0, 1.0, 0.5],
    "original_max_position_embeddings": [None, 32.0, 32.5, 0, "32"],
    "partial_rotary_factor": [0.5, None, 1, "1"],
    "attention_factor": [1.0, None],
    "beta_fast": [32, None],
    "mrope_section": [[1, 1]],
    "full_attention": [{"rope_type": "default", "rope_theta": 5.0}, None],
    "facotr": [2.0, None],
}
"""The same inside the object of RoPE."""


@st.composite
def configs(draw: st.DrawFn) -> Generated:
    """A plain config.json, or one with one or two keys of ``ODD`` or ``ODD_ROPE`` in it, or without a key of RoPE."""
    config = draw(plain_configs())
    if draw(st.integers(0, 2)) == 0:
        return Generated(config=config, odd="")
    odd = []
    for _ in range(draw(st.integers(1, 2))):
        tables = [key for key in ("rope_scaling", "rope_parameters") if isinstance(config.get(key), dict)]
        if tables and draw(st.booleans()):
            name = draw(st.sampled_from(tables))
            key = draw(st.sampled_from(sorted(ODD_ROPE)))
            values = [*ODD_ROPE[key], *(["REMOVED"] if key in config[name] else [])]
            value = draw(st.sampled_from(values))
            table = {k: v for k, v in config[name].items() if k != key}
            config[name] = table if value == "REMOVED" else table | {key: value}
            odd.append(f"{name}.{key}")
        else:
            key = draw(st.sampled_from(sorted(ODD)))
            config[key] = draw(st.sampled_from(ODD[key]))
            odd.append(key)
    return Generated(config=config, odd=", ".join(odd))


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The numbers of a model, as its modules have them."""

    numbers: dict[str, Any]
    inverse_frequencies: torch.Tensor
    attention_scaling: float

    def same(self, other: Reading) -> bool:
        return (
            self.numbers == other.numbers
            and self.attention_scaling == other.attention_scaling
            and self.inverse_frequencies.shape == other.inverse_frequencies.shape
            and torch.allclose(self.inverse_frequencies, other.inverse_frequencies, rtol=1e-6, atol=0, equal_nan=True)
        )


_POINTS = torch.tensor([-3.0, -0.5, 0.7, 2.0])


def transformers_reading(folder: Path) -> Reading | None:
    """Return what transformers builds of a folder's config.json; None where it refuses."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if _absurd(json.loads((folder / "config.json").read_text())):
        return None
    try:
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        rotary = type(model.model.rotary_emb)(config)  # on the CPU: its buffers have values
        layer = model.model.layers[0]
    except Exception:  # it has no class for "this file is wrong"
        return None
    norms = [m.variance_epsilon for m in model.modules() if hasattr(m, "variance_epsilon")]
    numbers = {
        "vocab_size": model.model.embed_tokens.num_embeddings,
        "hidden_size": model.model.embed_tokens.embedding_dim,
        "intermediate_size": layer.mlp.gate_proj.out_features,
        "num_hidden_layers": len(model.model.layers),
        "head_dim": layer.self_attn.head_dim,
        "q_rows": layer.self_attn.q_proj.out_features,
        "kv_rows": layer.self_attn.k_proj.out_features,
        "queries_per_kv": layer.self_attn.num_key_value_groups,
        "max_position_embeddings": config.max_position_embeddings,
        "initializer_range": config.initializer_range,
        "rms_norm_eps": sorted(set(norms)),
        "tied": model.lm_head.weight is model.model.embed_tokens.weight,
        "biases": any(name.endswith("bias") for name, _ in model.named_parameters()),
        "silu": torch.allclose(layer.mlp.act_fn(_POINTS), _POINTS * torch.sigmoid(_POINTS)),
        "dropout": layer.self_attn.attention_dropout or 0,
        "whole_heads": 2 * rotary.inv_freq.numel() == layer.self_attn.head_dim,
        "windows": getattr(config, "sliding_window", None),
        "causal": bool(getattr(config, "is_causal", True)),  # as its masking_utils reads it
        "alike": len({m.mlp.gate_proj.out_features for m in model.model.layers}) == 1,
    }
    return Reading(
        numbers=numbers, inverse_frequencies=rotary.inv_freq.float(), attention_scaling=rotary.attention_scaling
    )


def _absurd(config: dict[str, Any]) -> bool:
    """Tell whether transformers would spend minutes or all memory on it: that is a refusal too."""
    return any(type(config.get(key)) is int and config[key] >= 10**9 for key in (*_COUNTS, "head_dim"))
