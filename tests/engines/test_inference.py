"""Logits of divided models equal those of one process."""

from __future__ import annotations

import pytest
import torch

from tests.engines.harness import join, run_ranks
from tests.engines.specs import Case


def logits_of(case: Case) -> torch.Tensor | None:
    from llama_scale.train.inference import forward_logits
    from llama_scale.train.model import build_chunks

    chunks = build_chunks(case.spec(), case.plan(), join(case.plan()))
    tokens = torch.randint(61, (4, case.seq_length), generator=torch.Generator().manual_seed(1))
    return forward_logits(chunks, tokens)


@pytest.mark.parametrize(
    "case",
    [
        Case(tp=2),
        Case(tp=4, shape={"num_kv_heads": 4}),
        Case(pp=4),
        Case(tp=2, pp=2, sequence=True, shape={"tie_word_embeddings": True}),
        Case(pp=2, vp=2, overlap_p2p=True),
        Case(tp=2, recompute={"kind": "full", "method": "uniform", "layers": 1}),
    ],
    ids=["tp2", "tp4", "pp4", "tied-sequence", "interleaved", "recompute"],
)
def test_logits_equal_one_process(case: Case) -> None:
    (expected,) = run_ranks(1, logits_of, Case(shape=case.shape))

    ranks = run_ranks(case.world_size, logits_of, case)

    last = [r for r in ranks if r is not None]
    assert len(last) == case.tp
    assert expected.shape == (4, case.seq_length, 61)
    for logits in last:
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)
