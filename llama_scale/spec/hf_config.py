"""Read the numbers of a model from a Hugging Face folder's ``config.json``, or say why it is no plain LLaMA.

What is read is what transformers 5 makes of the file; what says two things, or something that no LLaMA here can be, is
refused. ``tests/unit/spec/test_hf_config.py`` compares the two over generated files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_scale.spec.hf_rope import read_rope
from llama_scale.spec.hf_values import HfValues, shown
from llama_scale.spec.model import ModelShape

_MAX_BYTES = 1024 * 1024

_MOST = {
    "vocab_size": 1 << 27,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 24,
    "num_hidden_layers": 10_000,
    "num_attention_heads": 1 << 12,
    "num_key_value_heads": 1 << 12,
    "head_dim": 1 << 16,
    "max_position_embeddings": 1 << 40,
}
"""Largest sizes that are read, far above those of any LLaMA: what is made of a damaged number would fill the memory."""

_FIXED: tuple[tuple[str, tuple[object, ...], str], ...] = (
    ("attention_bias", (False,), "attention projections with biases are not supported"),
    ("mlp_bias", (False,), "MLP projections with biases are not supported"),
    ("hidden_act", ("silu", "swish"), "the MLP is SwiGLU"),
    ("attention_dropout", (0, 0.0, None), "attention has no dropout here"),
    ("quantization_config", (None,), "quantized weights cannot be trained; use the unquantized model"),
    ("sliding_window", (None,), "attention sees the whole context here"),
    ("attention_chunk_size", (None,), "attention sees the whole context here"),
    ("is_causal", (True,), "a token sees nothing behind it here"),
    ("per_layer_config", (None, {}), "all layers are alike here"),
    ("configuration_files", (), "transformers reads another file then; rename the one that is meant to config.json"),
)
"""Keys that may only have one of these values (or be absent), and the reason."""

_DTYPES = ("float32", "float", "bfloat16", "float16", "half", "float64", "double")


class HfConfigError(Exception):
    """List everything that keeps a config.json from being a LLaMA of this project."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(faults))


@dataclass(frozen=True, slots=True, kw_only=True)
class HfConfig:
    """What a config.json says."""

    shape: ModelShape
    init_std: float


def read_hf_config(folder: str | Path) -> HfConfig:
    """Return the model's numbers.

    Raises:
        HfConfigError: no folder or file, no JSON, another architecture, missing or wrong keys (all of them at once).
    """
    config = _read_json(Path(folder))
    faults = list(_architecture_faults(config))
    if faults:
        raise HfConfigError(faults)
    values = HfValues(config)
    shape = _shape(values)
    init_std = values.fraction("initializer_range", 0.02, most=1.0)
    values.flag("use_cache", True)
    faults = [*_fixed_faults(config, shape), *_id_faults(config, shape), *_type_faults(config), *values.faults]
    if faults or shape is None:
        raise HfConfigError(faults)
    return HfConfig(shape=shape, init_std=init_std)


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not folder.is_dir():
        raise HfConfigError([f"{folder} is {'a file, not a folder' if folder.exists() else 'not there'}"])
    try:
        with path.open("rb") as stream:
            raw = stream.read(_MAX_BYTES + 1)
        if len(raw) > _MAX_BYTES:
            raise HfConfigError([f"{path} is larger than 1 MiB, so it is no config.json of a model"])
        config = json.loads(raw.decode("utf-8"))
    except FileNotFoundError as error:
        raise HfConfigError([f"{folder} holds no config.json"]) from error
    except OSError as error:
        raise HfConfigError([f"{path} cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise HfConfigError([f"{path} is not UTF-8 text; save it as UTF-8"]) from error
    except (ValueError, RecursionError) as error:
        raise HfConfigError([f"{path} is not JSON: {error}"]) from error
    if not isinstance(config, dict):
        raise HfConfigError([f"{path} holds {type(config).__name__}, not an object"])
    return config


def _architecture_faults(config: dict[str, Any]) -> Iterator[str]:
    if "model_type" not in config:
        yield "config.json has no model_type; a LLaMA's says 'llama'"
    elif config["model_type"] != "llama":
        yield f"model_type is {shown(config['model_type'])}; only 'llama' (LlamaForCausalLM) is supported"
    named = config.get("architectures")
    # "LLaMAForCausalLM" is what the first converters wrote.
    if named and not (isinstance(named, list) and [str(name).lower() for name in named] == ["llamaforcausallm"]):
        yield f"architectures is {shown(named)}; only ['LlamaForCausalLM'] is supported"


def _fixed_faults(config: dict[str, Any], shape: ModelShape | None) -> Iterator[str]:
    for key, allowed, reason in _FIXED:
        # By type too: 0 is False to Python, and neither to transformers.
        if key in config and not any(type(config[key]) is type(v) and config[key] == v for v in allowed):
            value = "set" if isinstance(config[key], dict) and config[key] else shown(config[key])
            yield f"{key} is {value}: {reason}"
    kinds = config.get("layer_types")
    if shape is not None and kinds not in (None, ["full_attention"] * shape.num_layers):
        yield f"layer_types is {shown(kinds)}: all {shape.num_layers} layers have 'full_attention' here"


def _id_faults(config: dict[str, Any], shape: ModelShape | None) -> Iterator[str]:
    for key in ("bos_token_id", "eos_token_id", "pad_token_id", "pretraining_tp"):
        value = config.get(key)
        listed = value if key == "eos_token_id" and isinstance(value, list) else [value]
        if value is not None and not all(type(item) is int for item in listed):
            yield f"{key} is {shown(value)}, not an integer{', a list of integers' * (key == 'eos_token_id')} or null"
    pad = config.get("pad_token_id")
    if shape is not None and type(pad) is int and not -shape.vocab_size <= pad < shape.vocab_size:
        yield (
            f"pad_token_id is {shown(pad)}, outside the vocabulary of {shape.vocab_size}, and transformers refuses to "
            "build such a model; set it to a token that exists, or to null"
        )


def _type_faults(config: dict[str, Any]) -> Iterator[str]:
    for key in ("dtype", "torch_dtype"):
        value = config.get(key)
        if value is not None and value not in _DTYPES:
            yield f"{key} is {shown(value)}, not one of {', '.join(_DTYPES)}"


def _shape(values: HfValues) -> ModelShape | None:
    """Build the shape; absent keys get the defaults of transformers' LlamaConfig."""

    def count(key: str, default: int, *, null: bool = False) -> int:
        return values.count(key, default, most=_MOST[key], null=null)

    hidden, heads = count("hidden_size", 4096), count("num_attention_heads", 32)
    kv_heads = count("num_key_value_heads", heads, null=True)
    head_dim = count("head_dim", max(1, hidden // heads), null=True)
    if not values.faults:
        values.faults += _head_faults(hidden=hidden, heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    theta, scaling = read_rope(values)
    shape = {
        "hidden_size": hidden,
        "ffn_hidden_size": count("intermediate_size", 11008),
        "num_layers": count("num_hidden_layers", 32),
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": count("vocab_size", 32000),
        "max_position_embeddings": count("max_position_embeddings", 2048),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "rms_norm_eps": values.fraction("rms_norm_eps", 1e-6),
        "tie_word_embeddings": values.flag("tie_word_embeddings", False),
    }
    return None if values.faults else ModelShape.model_validate(shape)


def _head_faults(*, hidden: int, heads: int, kv_heads: int, head_dim: int) -> Iterator[str]:
    if hidden % heads:
        yield (
            f"num_attention_heads={heads} does not divide hidden_size={hidden}, and transformers refuses such a LLaMA; "
            "one of the two is of another model"
        )
    if heads % kv_heads:
        yield (
            f"num_key_value_heads={kv_heads} does not divide num_attention_heads={heads}; one of the two is of another "
            "model"
        )
    if head_dim % 2:
        yield f"head_dim={head_dim} is odd, and RoPE turns pairs of numbers; config.json is of another model"
