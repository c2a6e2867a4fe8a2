"""Train tiny models on fixed random samples, for tests that compare layouts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch

from llama_scale.train.engine import MicroBatch
from tests.engines.harness import join
from tests.engines.specs import Case

T = TypeVar("T")


def sample(case: Case, number: int) -> dict[str, torch.Tensor]:
    """Return sample ``number`` of the run, whatever the layout: tokens of a noisy cycle, some masked positions."""
    model = case.spec().model
    generator = torch.Generator().manual_seed(1000 + number)
    noise = torch.randint(3, (case.seq_length + 1,), generator=generator)
    start = int(torch.randint(model.vocab_size, (), generator=generator))
    tokens = (torch.arange(case.seq_length + 1) * 5 + start + noise) % model.vocab_size
    result = {
        "tokens": tokens[:-1],
        "labels": tokens[1:],
        "loss_mask": (torch.rand(case.seq_length, generator=generator) > 0.25).float(),
        "position_ids": torch.arange(case.seq_length),
    }
    if case.isolate_documents:
        cut = case.seq_length // 3 + number % 5
        result["documents"] = (torch.arange(case.seq_length) >= cut).long()
        result["position_ids"] = torch.cat((torch.arange(cut), torch.arange(case.seq_length - cut)))
    return result


def micro_batches(case: Case, *, step: int, dp_rank: int) -> list[MicroBatch]:
    """Return a replica's part of a step, in the order that the data loader promises."""
    accumulation = case.global_batch // (case.dp * case.micro)
    first = step * case.global_batch
    batches = []
    for m in range(accumulation):
        rows = [sample(case, first + (m * case.dp + dp_rank) * case.micro + j) for j in range(case.micro)]
        batches.append({key: torch.stack([row[key] for row in rows]) for key in rows[0]})
    return batches  # type: ignore[return-value]


def start(case: Case) -> Any:
    """Join the process group and build the case's engine."""
    from llama_scale.train.engine import make_engine

    join(case.plan(), device=case.device)
    return make_engine(case.spec(), case.plan())


def in_turn(layouts: Iterable[T]) -> Iterator[T]:
    """Yield each layout to processes that have left the groups of the one before."""
    from megatron.core import parallel_state

    for layout in layouts:
        if parallel_state.model_parallel_is_initialized():
            parallel_state.destroy_model_parallel()
        yield layout
    torch.distributed.barrier()  # rank 0 holds the store that slower ranks still need


def start_in_turn(cases: Iterable[Case]) -> Iterator[tuple[Case, Any]]:
    """Yield each case and its engine, which is closed before the next."""
    for case in in_turn(cases):
        engine = start(case)
        yield case, engine
        engine.close()


def train_steps(engine: Any, case: Case, *, steps: int, first: int = 0) -> list[tuple[float, float]]:
    """Train and return (loss, gradient norm) of each step."""
    results = []
    for step in range(first, first + steps):
        batch = micro_batches(case, step=step, dp_rank=engine.coordinates.dp_rank)
        result = engine.train_step(batch, case.spec().optimizer.lr)
        assert not result.skipped
        results.append((result.loss, result.grad_norm))
    return results


def curve(case: Case, *, steps: int = 10) -> list[tuple[float, float]]:
    """What one rank sees of a training from initial weights."""
    return train_steps(start(case), case, steps=steps)
