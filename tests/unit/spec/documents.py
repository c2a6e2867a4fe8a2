"""Documents that the spec tests start from."""

from __future__ import annotations

import copy
from typing import Any

GOOD: dict[str, Any] = {
    "version": 1,
    "name": "demo",
    "model": {"kind": "preset", "name": "tinyllama-1.1b"},
    "data": {"kind": "indexed", "blend": [{"path": "a"}], "seq_length": 128},
    "train": {"steps": 10},
    "batch": {"global": 8, "micro": 2},
    "parallel": {"data": 2, "tensor": 2, "pipeline": 2},
    "engine": {"kind": "megatron"},
    "cluster": {"devices_per_node": 8, "device": "cpu"},
}
INLINE: dict[str, Any] = {
    "kind": "inline", "hidden_size": 64, "ffn_hidden_size": 96, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2,
    "head_dim": 16, "vocab_size": 100,
}  # fmt: skip


def document(**sections: Any) -> dict[str, Any]:
    """Return the good document with sections replaced; None removes one."""
    changed = {**copy.deepcopy(GOOD), **sections}
    return {key: value for key, value in changed.items() if value is not None}
