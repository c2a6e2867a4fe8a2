"""Who holds what: the boxes of a layout's shards, and the sizes that a layout must divide."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llama_scale.errors import ConvertError, SpecError
from llama_scale.layout.boxes import Box
from llama_scale.layout.parameters import Parameter, iter_parameters, local_box, padded_vocab_size
from llama_scale.plan.stages import Stages, make_stages
from llama_scale.spec.model import ModelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Ask for a layout.

    Args:
        tp_size: Tensor parallel ranks.
        pp_size: Pipeline stages.
        vp_size: Model chunks per stage.
        stage_layers: Layers of each chunk in the order of the forward pass; None: equal.
        vocab_pad_multiple: The vocabulary's rows in memory are a multiple of this x tp_size.
    """

    tp_size: int = 1
    pp_size: int = 1
    vp_size: int = 1
    stage_layers: tuple[int, ...] | None = None
    vocab_pad_multiple: int = 128


def valid_tp_sizes(shape: ModelShape) -> list[int]:
    """Return the tensor parallel degrees that divide heads, key/value heads and FFN width."""
    common = math.gcd(shape.num_heads, shape.num_kv_heads, shape.ffn_hidden_size)
    return [n for n in range(1, common + 1) if common % n == 0]


def check_layout(shape: ModelShape, layout: Layout) -> Stages:
    """Return the layers of each stage.

    Raises:
        ConvertError: A degree is below 1, or does not divide the model's numbers; names those that do.
    """
    for name, value in (
        ("tensor", layout.tp_size),
        ("pipeline", layout.pp_size),
        ("virtual", layout.vp_size),
        ("vocab-pad-multiple", layout.vocab_pad_multiple),
    ):
        if value < 1:
            raise ConvertError(f"--{name} {value} is below 1; it must be a positive number")
    valid = valid_tp_sizes(shape)
    if layout.tp_size not in valid:
        raise ConvertError(
            f"--tensor {layout.tp_size} does not divide num_heads={shape.num_heads}, num_kv_heads="
            f"{shape.num_kv_heads} and ffn_hidden_size={shape.ffn_hidden_size}; use " + " or ".join(map(str, valid))
        )
    try:
        return make_stages(
            shape.num_layers, pp_size=layout.pp_size, vp_size=layout.vp_size, stage_layers=layout.stage_layers
        )
    except SpecError as error:
        problem = error.problems[0]
        hint = problem.hint.replace("parallel.stage_layers", "--stage-layers")
        raise ConvertError(f"{problem.message}; {hint}") from None


def even_stage_layers(num_layers: int, *, pp_size: int) -> tuple[int, ...]:
    """Return the most even division of the layers, the first stages one layer more: for layouts nobody chose."""
    base, rest = divmod(num_layers, pp_size)
    return tuple(base + (stage < rest) for stage in range(pp_size))


def shard_parts(
    shape: ModelShape, layout: Layout, stages: Stages, *, parameters: Sequence[Parameter] | None = None
) -> Iterator[list[tuple[Parameter, Box]]]:
    """Yield for each rank (tensor parallel innermost) the boxes it stores; replicated tensors go to the first.

    Args:
        shape: The model.
        layout: Degrees.
        stages: What ``check_layout`` returned for them.
        parameters: Rows to be stored; default: the whole table.
    """
    table = list(iter_parameters(shape)) if parameters is None else parameters
    for chunks in stages:
        layers = {layer for chunk in chunks for layer in chunk.layers}
        first, last = any(c.has_embedding for c in chunks), any(c.has_head for c in chunks)
        held = [
            p for p in table if (p.layer in layers if p.place == "layer" else first if p.place == "embedding" else last)
        ]
        for tp_rank in range(layout.tp_size):
            yield [
                (p, box)
                for p in held
                if (tp_rank == 0 or p.tp_dim is not None)
                and (
                    box := local_box(
                        p, tp_rank=tp_rank, tp_size=layout.tp_size, vocab_pad_multiple=layout.vocab_pad_multiple
                    )
                ).numel
            ]


def topology_record(layout: Layout, stages: Stages) -> dict[str, Any]:
    """Return the layout as a manifest records it."""
    return {
        "dp_size": 1,
        "tp_size": layout.tp_size,
        "pp_size": layout.pp_size,
        "stages": tuple(tuple(chunk.layers for chunk in chunks) for chunks in stages),
    }


def padding_rows(shape: ModelShape, layout: Layout) -> int:
    """Return how many rows pad the vocabulary in memory; they are stored nowhere."""
    padded = padded_vocab_size(shape.vocab_size, tp_size=layout.tp_size, multiple=layout.vocab_pad_multiple)
    return padded - shape.vocab_size
