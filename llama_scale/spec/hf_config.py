"""Read the numbers of a model from a Hugging Face folder's ``config.json``, or say why it is no plain LLaMA."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_scale.spec.model import ModelShape, RopeScaling

_MAX_BYTES = 1024 * 1024

_FIXED: tuple[tuple[str, object, str], ...] = (
    ("attention_bias", False, "attention projections with biases are not supported"),
    ("mlp_bias", False, "MLP projections with biases are not supported"),
    ("hidden_act", "silu", "the MLP is SwiGLU"),
    ("partial_rotary_factor", 1.0, "RoPE turns whole heads"),
    ("quantization_config", None, "quantized weights cannot be trained; use the unquantized model"),
)
"""Keys whose value must be this one (absent counts as this one), and the reason."""


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
    reader = _Reader(config)
    shape = _shape(reader)
    init_std = reader.number("initializer_range", 0.02)
    faults = [*_fixed_faults(config), *reader.faults]
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
        config = json.loads(raw)
    except FileNotFoundError as error:
        raise HfConfigError([f"{folder} holds no config.json"]) from error
    except OSError as error:
        raise HfConfigError([f"{path} cannot be read: {error.strerror}"]) from error
    except (ValueError, RecursionError) as error:
        raise HfConfigError([f"{path} is not JSON: {error}"]) from error
    if not isinstance(config, dict):
        raise HfConfigError([f"{path} holds {type(config).__name__}, not an object"])
    return config


def _architecture_faults(config: dict[str, Any]) -> Iterator[str]:
    if "model_type" not in config:
        yield "config.json has no model_type; a LLaMA's says 'llama'"
    elif config["model_type"] != "llama":
        yield f"model_type is {config['model_type']!r}; only 'llama' (LlamaForCausalLM) is supported"
    named = config.get("architectures")
    if named and named != ["LlamaForCausalLM"]:
        yield f"architectures is {named!r}; only ['LlamaForCausalLM'] is supported"


def _fixed_faults(config: dict[str, Any]) -> Iterator[str]:
    for key, wanted, reason in _FIXED:
        value = config.get(key, wanted)
        if value is not None and value != wanted:
            shown = "set" if isinstance(value, dict) else repr(value)
            yield f"{key} is {shown}: {reason}"


class _Reader:
    """Take typed values out of a config and note what is wrong with the others."""

    def __init__(self, config: dict[str, Any], prefix: str = "") -> None:
        self.config = config
        self.prefix = prefix
        self.faults: list[str] = []

    def count(self, key: str, default: int | None = None) -> int:
        """Return a positive integer; 1 after a fault was noted."""
        value = self.config.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        self._note(key, value, "a positive integer")
        return 1

    def number(self, key: str, default: float | None = None) -> float:
        """Return a positive number; 1.0 after a fault was noted."""
        value = self.config.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 and math.isfinite(value):
            return float(value)
        self._note(key, value, "a positive number")
        return 1.0

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self.config.get(key, default)
        if isinstance(value, bool):
            return value
        self._note(key, value, "true or false")
        return default

    def _note(self, key: str, value: object, wanted: str) -> None:
        where = f"{self.prefix}{key}"
        missing = value is None and key not in self.config
        self.faults.append(f"{where} is missing" if missing else f"{where} is {value!r}, not {wanted}")


def _shape(reader: _Reader) -> ModelShape | None:
    """Build the shape; absent keys get the defaults of transformers' LlamaConfig."""
    hidden, heads = reader.count("hidden_size"), reader.count("num_attention_heads")
    kv_heads = reader.count("num_key_value_heads", heads)
    if reader.config.get("head_dim") is None and not reader.faults and hidden % heads:
        reader.faults.append(
            f"num_attention_heads={heads} does not divide hidden_size={hidden}, and head_dim is absent"
        )
    theta, scaling = _rope(reader)
    shape = {
        "hidden_size": hidden,
        "ffn_hidden_size": reader.count("intermediate_size"),
        "num_layers": reader.count("num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": reader.count("head_dim", max(1, hidden // heads)),
        "vocab_size": reader.count("vocab_size"),
        "max_position_embeddings": reader.count("max_position_embeddings", 2048),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "rms_norm_eps": reader.number("rms_norm_eps", 1e-6),
        "tie_word_embeddings": reader.flag("tie_word_embeddings", False),
    }
    return None if reader.faults else ModelShape.model_validate(shape)


def _rope(reader: _Reader) -> tuple[float, RopeScaling | None]:
    """Read RoPE's base and scaling from ``rope_parameters`` (transformers 5) or ``rope_theta`` and ``rope_scaling``."""
    key = "rope_parameters" if reader.config.get("rope_parameters") is not None else "rope_scaling"
    table = reader.config.get(key)
    if table is None:
        return reader.number("rope_theta", 10000.0), None
    if not isinstance(table, dict):
        reader.faults.append(f"{key} is {table!r}, not an object")
        return 1.0, None
    inner = _Reader(table, prefix=f"{key}.")
    theta = inner.number("rope_theta") if "rope_theta" in table else reader.number("rope_theta", 10000.0)
    kind = table.get("rope_type", table.get("type", "default"))
    scaling = None
    if kind == "llama3":
        scaling = RopeScaling(
            factor=inner.number("factor"),
            low_freq_factor=inner.number("low_freq_factor"),
            high_freq_factor=inner.number("high_freq_factor"),
            original_max_position_embeddings=inner.count("original_max_position_embeddings"),
        )
    elif kind != "default":
        reader.faults.append(f"{key}.rope_type is {kind!r}; only 'default' and 'llama3' are supported")
    reader.faults += inner.faults
    return theta, scaling
