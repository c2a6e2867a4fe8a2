"""The model on one rank against transformers' LlamaForCausalLM with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.engines.harness import join, run_ranks
from tests.engines.specs import SCALING, Case


def random_batch(case: Case, *, micro: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tokens with some masked positions."""
    generator = torch.Generator().manual_seed(seed)
    vocab = case.spec().model.vocab_size
    tokens = torch.randint(vocab, (micro, case.seq_length + 1), generator=generator)
    return {
        "tokens": tokens[:, :-1].contiguous(),
        "labels": tokens[:, 1:].contiguous(),
        "loss_mask": (torch.rand(micro, case.seq_length, generator=generator) > 0.2).float(),
        "position_ids": torch.arange(case.seq_length).expand(micro, -1).contiguous(),
    }


def reference(chunk: Any, case: Case) -> Any:
    """Build transformers' model with this chunk's weights, cut by hand from the fused matrices."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = case.spec().model
    scaling = model.rope_scaling
    config = LlamaConfig(
        hidden_size=model.hidden_size,
        intermediate_size=model.ffn_hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        vocab_size=model.vocab_size,
        max_position_embeddings=model.max_position_embeddings,
        rms_norm_eps=model.rms_norm_eps,
        tie_word_embeddings=model.tie_word_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta}
        if scaling is None
        else {"rope_type": "llama3", "rope_theta": model.rope_theta, **scaling.model_dump()},
    )
    hf = LlamaForCausalLM(config)
    queries, d = model.queries_per_kv, model.head_dim
    state = {"model.embed_tokens.weight": chunk.embedding.word_embeddings.weight[: model.vocab_size]}
    state["model.norm.weight"] = chunk.decoder.final_layernorm.weight
    state["lm_head.weight"] = chunk.head_weight()[: model.vocab_size]
    for i, layer in enumerate(chunk.decoder.layers):
        attention, mlp, name = layer.self_attention, layer.mlp, f"model.layers.{i}"
        groups = attention.linear_qkv.weight.view(model.num_kv_heads, queries + 2, d, -1)
        state[f"{name}.self_attn.q_proj.weight"] = groups[:, :queries].flatten(0, 2)
        state[f"{name}.self_attn.k_proj.weight"] = groups[:, queries].flatten(0, 1)
        state[f"{name}.self_attn.v_proj.weight"] = groups[:, queries + 1].flatten(0, 1)
        state[f"{name}.self_attn.o_proj.weight"] = attention.linear_proj.weight
        gate, up = mlp.linear_fc1.weight.chunk(2)
        state[f"{name}.mlp.gate_proj.weight"], state[f"{name}.mlp.up_proj.weight"] = gate, up
        state[f"{name}.mlp.down_proj.weight"] = mlp.linear_fc2.weight
        state[f"{name}.input_layernorm.weight"] = layer.input_layernorm.weight
        state[f"{name}.post_attention_layernorm.weight"] = layer.pre_mlp_layernorm.weight
    hf.load_state_dict({k: v.detach().clone() for k, v in state.items()})
    return hf


def perturb(chunk: torch.nn.Module) -> None:
    """Move norms away from one and biggen matrices, so that a missing or swapped weight would show."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in chunk.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
            else:
                parameter.mul_(4)


def compare(case: Case) -> dict[str, float]:
    from llama_scale.train.model import build_chunks

    coordinates = join(case.plan())
    (chunk,) = build_chunks(case.spec(), case.plan(), coordinates)
    perturb(chunk)
    hf = reference(chunk, case)
    batch = random_batch(case, micro=3)
    expected = hf(input_ids=batch["tokens"], position_ids=batch["position_ids"], use_cache=False).logits
    logits = chunk(batch, with_loss=False)
    loss = chunk(batch)
    losses = torch.nn.functional.cross_entropy(expected.flatten(0, 1), batch["labels"].flatten(), reduction="none")
    expected_loss = (losses * batch["loss_mask"].flatten()).sum()
    loss.backward()
    expected_loss.backward()
    grad = hf.model.embed_tokens.weight.grad
    own = chunk.embedding.word_embeddings.weight.grad
    qkv = chunk.decoder.layers[1].self_attention.linear_qkv.weight.grad
    model = case.spec().model
    values = qkv.view(model.num_kv_heads, -1, model.head_dim, model.hidden_size)[:, -2]
    return {
        "logits": ((logits - expected).abs().max() / expected.abs().max()).item(),
        "scale": expected.abs().max().item(),
        "loss": abs(loss.item() / expected_loss.item() - 1),
        "embedding_grad": ((own[: grad.shape[0]] - grad).abs().max() / grad.abs().max()).item(),
        "padding_grad": own[grad.shape[0] :].abs().sum().item(),
        "key_grad": (
            (values.flatten(0, 1) - hf.model.layers[1].self_attn.k_proj.weight.grad).abs().max() / values.abs().max()
        ).item(),
    }


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"tie_word_embeddings": True},
        {"rope_scaling": SCALING.model_dump(), "num_kv_heads": 4},
        {"num_kv_heads": 1, "head_dim": 16, "rope_theta": 500000.0},
    ],
    ids=["gqa", "tied", "llama3-rope-mha", "mqa"],
)
def test_model_equals_transformers(shape: dict[str, Any]) -> None:
    (result,) = run_ranks(1, compare, Case(shape=shape))

    assert result.pop("scale") > 0.1
    assert result.pop("padding_grad") == 0.0
    # fp32 rounding of a 4-layer forward and backward pass in another order.
    assert all(value < 5e-6 for value in result.values()), result
