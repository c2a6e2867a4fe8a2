"""RoPE in a config.json: ``rope_parameters`` (transformers 5), or ``rope_theta`` and ``rope_scaling`` (before).

transformers has an order of precedence among these keys, which changed between its versions. Here a file that says two
things about RoPE is refused, so that there is nothing to precede.
Source of what each version reads: transformers, modeling_rope_utils.py, ``RotaryEmbeddingConfigMixin``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama_scale.spec.hf_values import HfValues, shown
from llama_scale.spec.model import RopeScaling

DEFAULT_THETA = 10000.0

_TABLES = ("rope_parameters", "rope_scaling")
_COMMON = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor"})
_LLAMA3 = frozenset({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"})
_USED = {"default": _COMMON, "linear": _COMMON | {"factor"}, "llama3": _COMMON | _LLAMA3}
_OTHERS = frozenset(
    {
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "short_factor",
        "long_factor",
        "mscale",
        "mscale_all_dim",
        "truncate",
    }
    | {"mrope_section", "factor"}
    | _LLAMA3
)
"""Keys of other kinds of RoPE: null says nothing, any other value contradicts the kind."""

_MOST_POSITIONS = 1 << 40


def read_rope(values: HfValues) -> tuple[float, RopeScaling | None]:
    """Return RoPE's base and its scaling; faults are noted in ``values``.

    Scaling is None for plain RoPE, which linear scaling with factor 1 is too.
    """
    config = values.table
    present = [key for key in _TABLES if config.get(key) is not None and config[key] != {}]
    _refuse_partial(values)
    if not present:
        return values.number("rope_theta", DEFAULT_THETA), None
    readings = [_read_table(values, key) for key in present]
    if not values.faults and readings[0] != readings[-1]:
        values.faults.append(
            "rope_parameters and rope_scaling contradict each other, and versions of transformers differ in which of "
            "them they read; keep the one that the model was trained with"
        )
    return readings[0]


def _read_table(values: HfValues, key: str) -> tuple[float, RopeScaling | None]:
    config, table = values.table, values.table[key]
    if not isinstance(table, dict):
        values.note(key, "an object or null")
        return 1.0, None
    inner = HfValues(table, prefix=f"{key}.")
    scaling = None
    kind = _kind(inner)
    if kind is not None:
        _refuse_partial(inner, null=kind == "default")
        _refuse_others(inner, kind)
        if kind == "linear":
            _refuse_linear(inner)
        if kind == "llama3":
            scaling = _read_llama3(inner, config)
    theta = _theta(inner, values)
    values.faults += inner.faults
    return theta, scaling


def _kind(inner: HfValues) -> str | None:
    """Return the kind of RoPE, None after a fault was noted."""
    table = inner.table
    named = {key: table[key] for key in ("rope_type", "type") if key in table}
    kinds = list(named.values()) or ["default"]
    if kinds[0] != kinds[-1]:
        inner.faults.append(
            f"{inner.prefix}rope_type is {shown(kinds[0])} and {inner.prefix}type is {shown(kinds[-1])}; keep the one "
            "that the model was trained with"
        )
        return None
    kind = kinds[0]
    if not isinstance(kind, str) or kind not in _USED:
        nested = [key for key, value in table.items() if isinstance(value, dict)]
        hint = f" ({inner.prefix}{nested[0]} holds one for a kind of layer)" if nested else ""
        inner.faults.append(
            f"{inner.prefix}{next(iter(named), 'rope_type')} is {shown(kind)}{hint}; this version trains plain RoPE "
            "('default') and 'llama3'"
        )
        return None
    return kind


def _theta(inner: HfValues, values: HfValues) -> float:
    """Return the base, which may stand in the object or beside it."""
    if "rope_theta" not in inner.table:
        return values.number("rope_theta", DEFAULT_THETA)
    beside = values.table.get("rope_theta")
    if beside is not None and beside != inner.table["rope_theta"]:
        inner.faults.append(
            f"rope_theta is {shown(beside)} and {inner.prefix}rope_theta is {shown(inner.table['rope_theta'])}; keep "
            "the one that the model was trained with"
        )
    return inner.number("rope_theta")


def _refuse_partial(values: HfValues, *, null: bool = True) -> None:
    value = values.table.get("partial_rotary_factor", 1)
    if isinstance(value, bool) or (value != 1 and not (null and value is None)):
        values.note("partial_rotary_factor", "1.0: RoPE turns whole heads here")


def _refuse_others(inner: HfValues, kind: str) -> None:
    """Refuse keys that this kind of RoPE does not use: transformers ignores them with a warning."""
    for key, value in inner.table.items():
        if key not in _USED[kind] and (key not in _OTHERS or value is not None):
            inner.faults.append(
                f"{inner.prefix}{shown(key)[1:-1]} means nothing to rope_type {kind!r}; remove it, or name the "
                "rope_type that it belongs to"
            )


def _refuse_linear(inner: HfValues) -> None:
    factor = inner.number("factor")
    if factor != 1 and not inner.faults:
        inner.faults.append(
            f"{inner.prefix}rope_type 'linear' with factor {factor:g} is not supported, only factor 1.0, which is "
            "plain RoPE; this version trains plain RoPE ('default') and 'llama3'"
        )


def _read_llama3(inner: HfValues, config: Mapping[str, Any]) -> RopeScaling:
    original = "original_max_position_embeddings"
    table = dict(inner.table)
    if isinstance(table.get(original), float) and table[original].is_integer():
        table[original] = int(table[original])
    if original in config and config[original] != table.get(original):
        inner.faults.append(
            f"{original} is {shown(config[original])} and {inner.prefix}{original} is {shown(table.get(original))}; "
            f"keep the one that the model was trained with, in {inner.prefix[:-1]}"
        )
    numbers = HfValues(table, prefix=inner.prefix)
    scaling = RopeScaling(
        factor=numbers.number("factor"),
        low_freq_factor=numbers.number("low_freq_factor"),
        high_freq_factor=numbers.number("high_freq_factor"),
        original_max_position_embeddings=numbers.count(original, most=_MOST_POSITIONS),
    )
    if not numbers.faults and scaling.low_freq_factor >= scaling.high_freq_factor:
        numbers.faults.append(
            f"{inner.prefix}low_freq_factor={scaling.low_freq_factor:g} is not less than "
            f"high_freq_factor={scaling.high_freq_factor:g}; Llama 3 uses 1 and 4"
        )
    inner.faults += numbers.faults
    return scaling
