"""Tiny runs for the engine tests: specs and plans built from a few numbers, without files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llama_scale.plan.run_plan import RunPlan, make_plan
from llama_scale.spec.model import RopeScaling
from llama_scale.spec.run import RunSpec

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "num_layers": 4,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 12,  # not hidden_size / num_heads
    "vocab_size": 61,  # not divisible by anything
    "max_position_embeddings": 64,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
SCALING = RopeScaling(factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One layout and its options, with defaults for everything that a test does not care about."""

    tp: int = 1
    pp: int = 1
    dp: int = 1
    vp: int = 1
    sequence: bool = False
    distributed_optimizer: bool = False
    overlap_grad_reduce: bool = False
    overlap_param_gather: bool = False
    overlap_p2p: bool = False
    stage_layers: tuple[int, ...] | None = None
    global_batch: int = 8
    micro: int = 1
    seq_length: int = 16
    compute: str = "fp32"
    gradients: str = "fp32"
    recompute: dict[str, Any] = field(default_factory=lambda: {"kind": "none"})
    shape: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    isolate_documents: bool = False
    vocab_pad_multiple: int = 8
    engine: dict[str, Any] | None = None
    device: str = "cpu"
    seed: int = 7
    adapters: tuple[dict[str, Any], ...] = ()
    sections: dict[str, Any] = field(default_factory=dict)
    """More sections of the spec, or others in their place."""

    @property
    def world_size(self) -> int:
        return self.tp * self.pp * self.dp

    def spec(self) -> RunSpec:
        engine = self.engine or {
            "kind": "megatron",
            "distributed_optimizer": self.distributed_optimizer,
            "overlap_grad_reduce": self.overlap_grad_reduce,
            "overlap_param_gather": self.overlap_param_gather,
            "overlap_p2p": self.overlap_p2p,
        }
        accumulation = self.global_batch // (self.micro * self.dp)
        assert accumulation * self.micro * self.dp == self.global_batch, "a test's batch must divide"
        return RunSpec.model_validate(
            {
                "version": 1,
                "name": "tiny",
                "seed": self.seed,
                "model": {
                    "kind": "inline",
                    "vocab_pad_multiple": self.vocab_pad_multiple,
                    **SHAPE,
                    **self.shape,
                },
                "data": {
                    "kind": "indexed",
                    "blend": ({"path": "/nowhere"},),
                    "seq_length": self.seq_length,
                    "isolate_documents": self.isolate_documents,
                },
                "train": {"steps": 10},
                "batch": {"global": self.global_batch, "micro": self.micro, "accumulation": accumulation},
                "parallel": {
                    "data": self.dp,
                    "tensor": self.tp,
                    "pipeline": self.pp,
                    "virtual_stages": self.vp,
                    "sequence": self.sequence,
                    "stage_layers": self.stage_layers,
                },
                "engine": engine,
                "optimizer": {"lr": 1e-3, **self.optimizer},
                "precision": {"compute": self.compute, "gradients": self.gradients},
                "recompute": self.recompute,
                "cluster": {"nodes": 1, "devices_per_node": self.world_size, "device": self.device},
                "adapters": self.adapters,
                **self.sections,
            }
        )

    def plan(self) -> RunPlan:
        return make_plan(self.spec())
