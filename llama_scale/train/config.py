"""Spec and plan -> Megatron-Core's TransformerConfig: the one place that knows its field names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from llama_scale.spec.engine import MegatronEngine
from llama_scale.spec.recompute import FullRecompute, SelectiveRecompute
from llama_scale.train.versions import TransformerConfig

if TYPE_CHECKING:
    from llama_scale.plan.run_plan import RunPlan
    from llama_scale.plan.stages import Stages
    from llama_scale.spec.recompute import Recompute
    from llama_scale.spec.run import RunSpec

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Names in the spec -> torch's."""


def transformer_config(spec: RunSpec, plan: RunPlan) -> TransformerConfig:
    """Return the settings of every layer of this run."""
    shape = plan.shape
    dtype = DTYPES[spec.precision.compute]
    virtual_stages = len(plan.stages[0])
    overlap_p2p = isinstance(spec.engine, MegatronEngine) and spec.engine.overlap_p2p and virtual_stages > 1
    return TransformerConfig(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        ffn_hidden_size=shape.ffn_hidden_size,
        num_attention_heads=shape.num_heads,
        num_query_groups=shape.num_kv_heads,
        kv_channels=shape.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=shape.rms_norm_eps,
        add_bias_linear=False,
        gated_linear_unit=True,
        activation_func=F.silu,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        pipeline_dtype=dtype,
        # A mixture's rows are more behind its first adapted layer than before it.
        variable_seq_lengths=spec.mixture is not None and plan.topology.pp_size > 1,
        # There are no experts, but the default way of reaching them refuses the line above.
        moe_token_dispatcher_type="alltoall",
        tensor_model_parallel_size=plan.topology.tp_size,
        pipeline_model_parallel_size=plan.topology.pp_size,
        virtual_pipeline_model_parallel_size=virtual_stages if virtual_stages > 1 else None,
        pipeline_model_parallel_layout=_layout(plan.stages) if plan.topology.pp_size > 1 else None,
        sequence_parallel=spec.parallel.sequence,
        overlap_p2p_comm=overlap_p2p,
        batch_p2p_comm=not overlap_p2p,
        # gloo still reads an overlapped send's tensor when Megatron-Core frees it; CUDA streams are in order.
        deallocate_pipeline_outputs=spec.cluster.device == "cuda" or not overlap_p2p,
        # The sum of token losses is differentiated and divided by the tokens of the global batch afterwards, so
        # that neither layout nor micro-batching changes the gradient.
        calculate_per_token_loss=True,
        # initialize.py fills the weights.
        perform_initialization=False,
        masked_softmax_fusion=False,
        cuda_graph_scope=[],
        **_recompute(spec.recompute),
    )


def _layout(stages: Stages) -> list[list[str]]:
    """List the chunks' contents in the order of the forward pass: virtual stage v * pp + p."""
    rows = []
    for virtual_rank in range(len(stages[0])):
        for stage in stages:
            chunk = stage[virtual_rank]
            rows.append(
                ["embedding"] * chunk.has_embedding + ["decoder"] * len(chunk.layers) + ["loss"] * chunk.has_head
            )
    return rows


def _recompute(recompute: Recompute) -> dict[str, Any]:
    if isinstance(recompute, SelectiveRecompute):
        return {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    if isinstance(recompute, FullRecompute):
        return {
            "recompute_granularity": "full",
            "recompute_method": recompute.method,
            "recompute_num_layers": recompute.layers,
        }
    return {}
