"""Rotary angles against transformers', Llama 3 scaling included."""

from __future__ import annotations

import pytest
import torch

from llama_scale.spec.model import ModelShape, RopeScaling
from llama_scale.train.rope import inverse_frequencies, rotation

LLAMA31 = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
LLAMA32 = RopeScaling(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
ODD = RopeScaling(factor=3.0, low_freq_factor=0.5, high_freq_factor=7.5, original_max_position_embeddings=777)


def shape(*, head_dim: int, theta: float, scaling: RopeScaling | None) -> ModelShape:
    return ModelShape(
        hidden_size=64,
        ffn_hidden_size=64,
        num_layers=1,
        num_heads=4,
        num_kv_heads=2,
        head_dim=head_dim,
        vocab_size=10,
        max_position_embeddings=131072,
        rope_theta=theta,
        rope_scaling=scaling,
    )


@pytest.mark.parametrize("head_dim", [12, 64, 128])
@pytest.mark.parametrize(("theta", "scaling"), [(10000.0, None), (500000.0, LLAMA31), (500000.0, LLAMA32), (1e5, ODD)])
def test_cosines_equal_transformers(head_dim: int, theta: float, scaling: RopeScaling | None) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    model = shape(head_dim=head_dim, theta=theta, scaling=scaling)
    parameters = {"rope_type": "default", "rope_theta": theta}
    if scaling is not None:
        parameters = {"rope_type": "llama3", "rope_theta": theta, **scaling.model_dump()}
    config = LlamaConfig(head_dim=head_dim, num_attention_heads=4, hidden_size=64, rope_parameters=parameters)
    positions = torch.tensor([[0, 1, 2, 100, 5000, 60000]])
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions)

    own = rotation(inverse_frequencies(model), positions, dtype=torch.float32)

    torch.testing.assert_close(own[0, :, 0], cos[0, :, : head_dim // 2], rtol=0, atol=1e-6)
    torch.testing.assert_close(own[1, :, 0], sin[0, :, : head_dim // 2], rtol=0, atol=1e-6)
