"""The parameter table of a LLaMA in Megatron-Core's names, with the dim that tensor parallelism cuts.

Shapes are *logical*: a fused matrix has its parts as a dim of its own, so that every shard is a box.

* ``linear_fc1.weight`` is ``[2, ffn, hidden]`` (gate, up); a rank's own matrix ``[2 * ffn/tp, hidden]`` is that box
  viewed flat.
* ``linear_qkv.weight`` is ``[kv_heads, (q_per_kv + 2) * head_dim, hidden]``: each group holds its query heads, then
  its key, then its value head (Megatron-Core's order for GQA).

Embedding and output layer are logically ``[vocab_size, hidden]``; the rows that pad the vocabulary exist only in
memory (``padded_vocab_size``) and are in no box.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from llama_scale.layout.boxes import Box
from llama_scale.spec.model import ModelShape

Place = Literal["embedding", "layer", "final_norm", "head"]
Init = Literal["normal", "scaled", "ones", "zeros", "kaiming_uniform"]

EMBEDDING = "embedding.word_embeddings.weight"
HEAD = "output_layer.weight"
FINAL_NORM = "decoder.final_layernorm.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One logical parameter of the whole model.

    Args:
        name: Megatron-Core's name with the layer's global number, e.g. ``decoder.layers.17.mlp.linear_fc1.weight``.
        shape: Logical shape, see the module's docstring.
        tp_dim: Dim of the logical shape that tensor parallelism divides; None for a replicated parameter.
        place: The part of the model that owns it.
        layer: Global layer number for ``place == "layer"``, else None.
        init: ``normal`` (std), ``scaled`` (std / sqrt(2 layers), for projections back into the residual stream),
            ``ones``, ``zeros`` or ``kaiming_uniform`` (within 1 / sqrt(last dim)).
        std: Standard deviation of ``normal``; None: the model's ``init_std``.
        owner: ``base``, or what added it: ``adapter:NAME``, ``task:NAME``, ``mixture``.
        trainable: Whether training updates it.
        partial_gradient: Replicated, but with sequence parallelism its gradient is summed over the tensor group.
    """

    name: str
    shape: tuple[int, ...]
    tp_dim: int | None
    place: Place
    layer: int | None
    init: Init
    std: float | None = None
    owner: str = "base"
    trainable: bool = True
    partial_gradient: bool = False

    @property
    def numel(self) -> int:
        """Elements of the logical tensor."""
        return math.prod(self.shape)


def module_name(name: str) -> str:
    """Return a name from the spec as one part of a dotted parameter name: dots are escaped, reversibly.

    >>> module_name("news-v1.2")
    'news-v1%2E2'
    """
    return name.replace(".", "%2E")


def adapter_parameter(layer: int, adapter: str, name: str) -> str:
    """Return the logical name of an adapter's parameter in a layer."""
    return f"decoder.layers.{layer}.adapters.{module_name(adapter)}.{name}"


def head_parameter(task: str, name: str) -> str:
    """Return the logical name of a task head's parameter."""
    return f"heads.{module_name(task)}.{name}"


def padded_vocab_size(vocab_size: int, *, tp_size: int, multiple: int) -> int:
    """Return the vocabulary's rows in memory: the next multiple of ``multiple * tp_size``."""
    step = multiple * tp_size
    return -(-vocab_size // step) * step


def layer_parameters(shape: ModelShape, layer: int) -> tuple[Parameter, ...]:
    """Return the parameters of one transformer layer, in the order of the forward pass."""
    hidden, ffn = shape.hidden_size, shape.ffn_hidden_size
    qkv_rows = (shape.queries_per_kv + 2) * shape.head_dim
    rows: tuple[tuple[str, tuple[int, ...], int | None, Init], ...] = (
        ("input_layernorm.weight", (hidden,), None, "ones"),
        ("self_attention.linear_qkv.weight", (shape.num_kv_heads, qkv_rows, hidden), 0, "normal"),
        ("self_attention.linear_proj.weight", (hidden, shape.num_heads * shape.head_dim), 1, "scaled"),
        ("pre_mlp_layernorm.weight", (hidden,), None, "ones"),
        ("mlp.linear_fc1.weight", (2, ffn, hidden), 1, "normal"),
        ("mlp.linear_fc2.weight", (hidden, ffn), 1, "scaled"),
    )
    return tuple(
        Parameter(
            name=f"decoder.layers.{layer}.{name}",
            shape=dims,
            tp_dim=tp_dim,
            place="layer",
            layer=layer,
            init=init,
        )
        for name, dims, tp_dim, init in rows
    )


def iter_parameters(shape: ModelShape) -> Iterator[Parameter]:
    """Yield every logical parameter once; a tied output layer is the embedding and is not yielded again."""
    table = (shape.vocab_size, shape.hidden_size)
    yield Parameter(name=EMBEDDING, shape=table, tp_dim=0, place="embedding", layer=None, init="normal")
    for layer in range(shape.num_layers):
        yield from layer_parameters(shape, layer)
    yield Parameter(
        name=FINAL_NORM, shape=(shape.hidden_size,), tp_dim=None, place="final_norm", layer=None, init="ones"
    )
    if not shape.tie_word_embeddings:
        yield Parameter(name=HEAD, shape=table, tp_dim=0, place="head", layer=None, init="normal")


def local_box(parameter: Parameter, *, tp_rank: int, tp_size: int, vocab_pad_multiple: int) -> Box:
    """Return the part of a logical parameter that one tensor parallel rank holds.

    For embedding and head the box has only the rows that exist: a rank whose rows are all padding has a box with 0
    rows. The caller has checked that ``tp_size`` divides every other cut dim.
    """
    if parameter.tp_dim is None or tp_size == 1:
        return Box.whole(parameter.shape)
    dim = parameter.tp_dim
    full = parameter.shape[dim]
    if parameter.name in (EMBEDDING, HEAD):
        rows = padded_vocab_size(full, tp_size=tp_size, multiple=vocab_pad_multiple) // tp_size
        start = min(tp_rank * rows, full)
        length = min((tp_rank + 1) * rows, full) - start
    else:
        length = full // tp_size
        start = tp_rank * length
    offset = tuple(start if d == dim else 0 for d in range(len(parameter.shape)))
    extent = tuple(length if d == dim else n for d, n in enumerate(parameter.shape))
    return Box(offset, extent)
