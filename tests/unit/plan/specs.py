"""Resolved specs for plan tests, built without files."""

from __future__ import annotations

from typing import Any

from llama_scale.spec.presets import PRESETS
from llama_scale.spec.run import RunSpec

TINY: dict[str, Any] = {
    "kind": "inline",
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "num_layers": 8,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 12,
    "vocab_size": 61,
}


def preset(name: str) -> dict[str, Any]:
    """Return a preset as an inline model's values."""
    return {"kind": "inline", "name": name, **PRESETS[name].shape.model_dump()}


def run_spec(
    *,
    model: dict[str, Any] | None = None,
    dp: int = 1,
    tp: int = 1,
    pp: int = 1,
    micro: int = 1,
    accumulation: int = 8,
    seq_length: int = 64,
    **sections: Any,
) -> RunSpec:
    """Return a resolved spec; ``parallel`` is merged with the degrees, other sections replace the defaults."""
    parallel = {"data": dp, "tensor": tp, "pipeline": pp, **sections.pop("parallel", {})}
    return RunSpec.model_validate(
        {
            "version": 1,
            "name": "tiny",
            "model": {**TINY, **(model or {})},
            "data": {"kind": "indexed", "blend": ({"path": "/data/tokens"},), "seq_length": seq_length},
            "train": {"steps": 10},
            "batch": {"global": micro * accumulation * dp, "micro": micro, "accumulation": accumulation},
            "parallel": parallel,
            "engine": {"kind": "megatron"},
            "cluster": {"nodes": 1, "devices_per_node": dp * tp * pp},
            **sections,
        }
    )
