from __future__ import annotations

import pytest

from llama_scale.plan.flops import (
    attention_flops_per_token,
    matmul_flops_per_token,
    model_flops_per_token,
    recomputed_flops_per_token,
)
from llama_scale.plan.parameters import model_numel
from llama_scale.plan.stages import make_stages
from llama_scale.spec.presets import PRESETS
from llama_scale.spec.recompute import FullRecompute, NoRecompute, SelectiveRecompute


@pytest.mark.parametrize("name", list(PRESETS))
def test_full_convention_is_palms_formula(name: str) -> None:
    # Chowdhery et al. 2022, appendix B: 6 N + 12 L H Q T with N the weights of matrix products.
    shape = PRESETS[name].shape
    norms = (2 * shape.num_layers + 1) * shape.hidden_size
    tables = shape.vocab_size * shape.hidden_size
    matrices = model_numel(shape) - norms - (0 if shape.tie_word_embeddings else tables)

    flops = model_flops_per_token(shape, 4096)

    assert flops == 6 * matrices + 12 * shape.num_layers * shape.num_heads * shape.head_dim * 4096


def test_causal_convention_counts_the_masks_half() -> None:
    shape = PRESETS["llama-3.1-8b"].shape
    weights = model_flops_per_token(shape, 0)

    full = model_flops_per_token(shape, 8191) - weights
    causal = model_flops_per_token(shape, 8191, convention="causal") - weights

    assert causal / full == pytest.approx(8192 / 2 / 8191)


def test_llama_3_405b_needs_the_published_compute() -> None:
    # Llama 3 herd of models (arXiv:2407.21783), section 3.2.1: 3.8e25 FLOPs for 15.6T tokens.
    flops = 15.6e12 * model_flops_per_token(PRESETS["llama-3.1-405b"].shape, 8192, convention="causal")

    assert flops == pytest.approx(3.8e25, rel=0.05)


def test_recomputed_flops_by_mode() -> None:
    shape = PRESETS["llama-3.1-8b"].shape
    stages = make_stages(32, pp_size=4)
    attention = attention_flops_per_token(shape, 8192)
    layers = matmul_flops_per_token(shape) - 2 * shape.hidden_size * shape.vocab_size + attention

    def again(recompute: NoRecompute | SelectiveRecompute | FullRecompute) -> float:
        return recomputed_flops_per_token(shape, 8192, stages=stages, recompute=recompute)

    assert again(NoRecompute(kind="none")) == 0
    assert again(SelectiveRecompute(kind="selective")) == attention
    assert again(FullRecompute(kind="full")) == layers
    assert again(FullRecompute(kind="full", method="block", layers=2)) == layers / 4
    assert again(FullRecompute(kind="full", method="block", layers=8)) == layers
