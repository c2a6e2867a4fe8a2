"""Logits of a model that is divided over ranks: what converting, evaluation and generation compare and sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from llama_scale.train.engine import MicroBatch
from llama_scale.train.versions import get_forward_backward_func

if TYPE_CHECKING:
    from llama_scale.train.model import LlamaModel


@torch.no_grad()
def forward_logits(chunks: Sequence[LlamaModel], tokens: torch.Tensor) -> torch.Tensor | None:
    """Run tokens through all stages and return their logits on the last stage's ranks, None elsewhere.

    Collective over the model's tensor and pipeline parallel ranks; replicas may have tokens of their own.

    Args:
        chunks: This rank's model chunks, from ``build_chunks``.
        tokens: int64 ``[batch, seq]``, the same on all ranks of a replica; with sequence parallelism, ``tp_size``
            divides ``seq``; with virtual stages, the batch is run sample by sample and the pipeline size divides it.

    Returns:
        ``[batch, seq, vocab_size]`` in the model's dtype, without padding.
    """
    virtual_stages = len(chunks)
    parts = tokens.split(1) if virtual_stages > 1 else (tokens,)
    batches = [_batch(part) for part in parts]
    training = [chunk.training for chunk in chunks]
    for chunk in chunks:
        chunk.eval()
    try:
        results = get_forward_backward_func()(
            forward_step_func=_forward_step,
            data_iterator=[iter(batches) for _ in chunks],
            model=list(chunks),
            num_microbatches=len(batches),
            seq_length=tokens.shape[1],
            micro_batch_size=parts[0].shape[0],
            forward_only=True,
            collect_non_loss_data=True,
        )
    finally:
        for chunk, mode in zip(chunks, training, strict=True):
            chunk.train(mode)
    return torch.cat(results) if results else None


def _batch(tokens: torch.Tensor) -> MicroBatch:
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    return {"tokens": tokens, "labels": tokens, "loss_mask": torch.ones_like(tokens).float(), "position_ids": positions}


def _forward_step(batches: Iterator[MicroBatch], model: LlamaModel) -> tuple[torch.Tensor, Any]:
    def collect(logits: torch.Tensor, non_loss_data: bool) -> torch.Tensor:
        assert non_loss_data
        return model.gather_logits(logits)

    return model(next(batches), with_loss=False), collect
