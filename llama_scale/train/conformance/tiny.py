"""The tiny runs of the suite: specs without files, and samples that every layout reads alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from llama_scale.plan.run_plan import RunPlan, make_plan
from llama_scale.spec.run import RunSpec
from llama_scale.train.engine import MicroBatch

SHAPE: Mapping[str, Any] = {
    "hidden_size": 64,
    "ffn_hidden_size": 96,
    "num_layers": 4,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "vocab_size": 61,  # divided by no degree: rows are padded
    "max_position_embeddings": 512,
}
INIT_STD = 0.2
"""Wide, so that layers do something and changing them changes the loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiny:
    """One run.

    Args:
        tp: Tensor parallel ranks.
        pp: Pipeline stages.
        dp: Replicas.
        sequence: Sequence parallelism.
        compute: ``fp32`` or ``bf16``.
        seq_length: Tokens of a row.
        slot: Rows of a micro-batch over all replicas; a global batch has 4.
        sections: More sections of the spec, or others in their place.
        vocab_size: Tokens the model knows.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    sequence: bool = False
    compute: str = "fp32"
    seq_length: int = 16
    slot: int = 1
    sections: Mapping[str, Any] = field(default_factory=dict)
    vocab_size: int = SHAPE["vocab_size"]

    @property
    def world(self) -> int:
        """Processes."""
        return self.tp * self.pp * self.dp

    def spec(self) -> RunSpec:
        """Return the spec."""
        return RunSpec.model_validate(
            {
                "version": 1,
                "name": "conformance",
                "seed": 7,
                "model": {
                    "kind": "inline",
                    **SHAPE,
                    "vocab_size": self.vocab_size,
                    "init_std": INIT_STD,
                    "vocab_pad_multiple": 8,
                },
                "data": {"kind": "indexed", "blend": ({"path": "/none"},), "seq_length": self.seq_length},
                "train": {"steps": 10},
                "batch": {"global": 4, "micro": self.slot // self.dp, "accumulation": 4 // self.slot},
                "parallel": {"data": self.dp, "tensor": self.tp, "pipeline": self.pp, "sequence": self.sequence},
                "engine": {"kind": "megatron", "distributed_optimizer": False},
                # A large epsilon: Adam must not blow up gradients that are nothing but rounding.
                "optimizer": {"lr": 1e-2, "weight_decay": 0.0, "eps": 1e-4},
                "precision": {"compute": self.compute},
                "cluster": {"nodes": 1, "devices_per_node": self.world, "device": "cpu"},
                **self.sections,
            }
        )

    def plan(self) -> RunPlan:
        """Return the plan."""
        return make_plan(self.spec())


def samples(tiny: Tiny, *, step: int) -> list[MicroBatch]:
    """Return the micro-batches of a step: noisy cycles of tokens, some positions masked."""
    return [_sample(tiny, number=4 * step + row) for row in range(4)]


def _sample(tiny: Tiny, *, number: int) -> MicroBatch:
    generator = torch.Generator().manual_seed(1000 + number)
    noise = torch.randint(3, (tiny.seq_length + 1,), generator=generator)
    start = int(torch.randint(tiny.vocab_size, (), generator=generator))
    tokens = (torch.arange(tiny.seq_length + 1) * 5 + start + noise) % tiny.vocab_size
    return {
        "tokens": tokens[None, :-1],
        "labels": tokens[None, 1:],
        "loss_mask": (torch.rand(1, tiny.seq_length, generator=generator) > 0.25).float(),
        "position_ids": torch.arange(tiny.seq_length)[None],
    }


def worst(found: Sequence[float], expected: Sequence[float]) -> float:
    """Return the largest relative difference of two curves."""
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(found, expected, strict=True))
