"""The linear layers of a LLaMA layer, for the light side of adapters: names, sizes, and how they are divided."""

from __future__ import annotations

from typing import Final, Literal

from llama_scale.spec.model import ModelShape

Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""A linear layer by its Hugging Face name."""

COLUMN: Final[tuple[Target, ...]] = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
"""Column parallel: tensor parallelism divides their output."""

ROW: Final[tuple[Target, ...]] = ("o_proj", "down_proj")
"""Row parallel: tensor parallelism divides their input."""

LINEARS: Final[tuple[Target, ...]] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""All of them, in the order of the forward pass."""


def linear_size(shape: ModelShape, target: Target) -> tuple[int, int]:
    """Return (outputs, inputs) of a linear layer of the whole model."""
    queries = shape.num_heads * shape.head_dim
    keys = shape.num_kv_heads * shape.head_dim
    hidden, ffn = shape.hidden_size, shape.ffn_hidden_size
    sizes: dict[Target, tuple[int, int]] = {
        "q_proj": (queries, hidden),
        "k_proj": (keys, hidden),
        "v_proj": (keys, hidden),
        "o_proj": (hidden, queries),
        "gate_proj": (ffn, hidden),
        "up_proj": (ffn, hidden),
        "down_proj": (hidden, ffn),
    }
    return sizes[target]
