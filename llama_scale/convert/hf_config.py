"""The config.json of a Hugging Face LLaMA: read for import, and written from a ``ModelShape``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama_scale.errors import ConvertError
from llama_scale.spec.hf_config import HfConfigError, read_hf_config
from llama_scale.spec.model import ModelShape, RopeScaling

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"


def read_shape(folder: Path) -> ModelShape:
    """Read the numbers of a LLaMA from its Hugging Face folder.

    Raises:
        ConvertError: The folder or file is missing, no JSON, of another model type, quantized, or uses something
            that the native model does not have (biases, another activation, another RoPE scaling).
    """
    try:
        return read_hf_config(folder).shape
    except HfConfigError as error:
        raise ConvertError(f"{folder} cannot be converted: {error}") from error


def make_hf_config(
    shape: ModelShape, *, dtype: str, base: dict[str, Any] | None = None, token_ids: dict[str, int | None] | None = None
) -> dict[str, Any]:
    """Return config.json of a model.

    Args:
        shape: The model's numbers.
        dtype: ``float32`` or ``bfloat16``.
        base: config.json the weights were imported with; what is not a number of the model is kept from it.
        token_ids: ``bos``, ``eos`` and ``pad`` of the tokenizer; they replace those of ``base``.

    Raises:
        ConvertError: transformers cannot hold a model of this shape.
    """
    if shape.hidden_size % shape.num_heads:
        raise ConvertError(
            f"hidden_size={shape.hidden_size} is not a multiple of num_heads={shape.num_heads}: transformers refuses "
            "to load such a LLaMA (although head_dim is free), so it cannot be exported"
        )
    config = dict(base or {})
    config.pop("rope_parameters", None)
    config.pop("torch_dtype", None)
    config |= {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.ffn_hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.max_position_embeddings,
        # The keys of transformers 4, which 5 reads too.
        "rope_theta": shape.rope_theta,
        "rope_scaling": _scaling(shape.rope_scaling),
        "rms_norm_eps": shape.rms_norm_eps,
        "tie_word_embeddings": shape.tie_word_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": dtype,
        "dtype": dtype,
    }
    ids = {"bos": None, "eos": None, "pad": None} if base is None else {}
    for name, value in (ids | (token_ids or {})).items():
        config[f"{name}_token_id"] = value
    return config


def _scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    return None if scaling is None else {"rope_type": "llama3", **scaling.model_dump()}


def make_generation_config(config: dict[str, Any], *, base: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return generation_config.json: the imported one, or the token ids with greedy decoding."""
    made = dict(base or {"do_sample": False})
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if config.get(key) is not None:
            made.setdefault(key, config[key])
    return made
