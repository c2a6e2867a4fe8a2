"""The config.json of a Hugging Face LLaMA: read for import, and written from a ``ModelShape``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama_scale.errors import ConvertError
from llama_scale.spec.hf_config import HfConfigError, read_hf_config
from llama_scale.spec.model import ModelShape, RopeScaling

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"

_NOT_CARRIED = frozenset(
    {
        "rope_parameters",  # written as rope_theta and rope_scaling
        "torch_dtype",
        "quantization_config",
        "compression_config",
        "auto_map",  # code, which is not exported
        "_name_or_path",  # a path of the machine that saved the origin
        "_commit_hash",
        "transformers_weights",  # the name of a file that the origin has
    }
)
"""Keys of an origin's config.json that an export does not have, besides the numbers of the model."""


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
    config = {key: value for key, value in (base or {}).items() if key not in _NOT_CARRIED}
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


def make_generation_config(config: Mapping[str, Any], *, base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return generation_config.json.

    Args:
        config: config.json of the model.
        base: The generation_config.json that came with the model; None where none came.

    Returns:
        ``base`` as it was, but for the stop tokens, which are those of ``config``.

    Raises:
        ConvertError: Stop tokens are something else than ids, or transformers refuses settings in ``config``.
    """
    if base is not None:
        return with_stops(base, named_stops(config))
    from transformers import GenerationConfig  # lazy: exports alone write one

    # Without the file, transformers takes sampling settings from config.json, where old models have them.
    try:
        made: dict[str, Any] = GenerationConfig.from_model_config(dict(config)).to_diff_dict()
    except (TypeError, ValueError) as error:
        raise ConvertError(f"transformers refuses the generation settings in config.json: {error}") from error
    for key in ("_from_model_config", "transformers_version"):
        made.pop(key, None)
    return {"do_sample": False} | made


def named_stops(config: Mapping[str, Any] | None) -> tuple[int, ...]:
    """Return the tokens that a config.json or generation_config.json names as ``eos_token_id``, each once.

    Raises:
        ConvertError: It names something else.
    """
    value = (config or {}).get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(number) is int for number in ids):
        raise ConvertError(f"eos_token_id is {value!r}, not a token's id or a list of ids; correct it in the config")
    return tuple(dict.fromkeys(ids))


def with_stops(config: Mapping[str, Any], ids: tuple[int, ...]) -> dict[str, Any]:
    """Return a config that names these stop tokens: as it is if it does, else as one id or as a list."""
    if not ids or named_stops(config) == ids:
        return dict(config)
    return {**config, "eos_token_id": ids[0] if len(ids) == 1 else list(ids)}
