"""What a step tells beside its loss: each task's loss, each adapter's responsibility; gathered once a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn

from llama_scale.spec.adapters import mixed_adapters
from llama_scale.train.versions import parallel_state

if TYPE_CHECKING:
    from llama_scale.spec.run import RunSpec
    from llama_scale.train.engine import Engine

TASK, RESPONSIBILITY = "task/", "responsibility/"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStatistics:
    """Means over the global batch of one step.

    Args:
        task_losses: Loss per counted token (or what else the task counts) of each task that had rows.
        responsibilities: Share of the tokens (or, with ``posterior``, documents) that each adapter is responsible for.
        task_tokens: What each of ``task_losses`` was divided by: means of several steps are weighted with it.
        responsibility_tokens: Tokens (or documents) that the adapters share.
    """

    task_losses: Mapping[str, float] = field(default_factory=dict)
    responsibilities: Mapping[str, float] = field(default_factory=dict)
    task_tokens: Mapping[str, float] = field(default_factory=dict)
    responsibility_tokens: float | None = None


class Tally(dict[str, torch.Tensor]):
    """A chunk's sums since they were last gathered: name -> ``[sum, weight]`` fp64, without gradient."""

    def add(self, name: str, total: torch.Tensor, weight: torch.Tensor) -> None:
        """Add to a mean's numerator and denominator."""
        pair = torch.stack((total.detach().double(), weight.detach().double()))
        self[name] = self[name] + pair if name in self else pair


def statistics_names(spec: RunSpec) -> tuple[str, ...]:
    """Return what a run's steps may tell, in the same order on all ranks."""
    mixed = () if spec.mixture is None else mixed_adapters(spec.adapters, spec.mixture)
    return (*(TASK + task.name for task in spec.tasks), *(RESPONSIBILITY + adapter for adapter in mixed))


def make_gather(spec: RunSpec, engine: Engine) -> Callable[[], StepStatistics] | None:
    """Return a collective function that gives the statistics since its last call; None: there never are any."""
    names = statistics_names(spec)
    if not names:
        return None
    return lambda: gather(names, engine.chunks)


def gather(names: Sequence[str], chunks: Sequence[nn.Module]) -> StepStatistics:
    """Add the ranks' tallies up in one exchange and empty them.

    Tensor parallel ranks hold equal tallies, so that every sum and its weight count as often.
    """
    device = next(chunks[0].parameters()).device
    sums = torch.zeros(len(names), 2, dtype=torch.float64, device=device)
    for chunk in chunks:
        tally: Tally = chunk.statistics
        for place, name in enumerate(names):
            if name in tally:
                sums[place] += tally[name]
        tally.clear()
    dist.all_reduce(sums)
    found = {name: pair for name, pair in zip(names, sums.tolist(), strict=True) if pair[1]}
    means = {name: total / weight for name, (total, weight) in found.items()}
    # Each tensor parallel rank of the last stage has counted.
    copies = parallel_state.get_tensor_model_parallel_world_size()
    weights = {name: weight / copies for name, (_, weight) in found.items()}
    return StepStatistics(
        task_losses=_starting(TASK, means),
        responsibilities=_starting(RESPONSIBILITY, means),
        task_tokens=_starting(TASK, weights),
        responsibility_tokens=next(iter(_starting(RESPONSIBILITY, weights).values()), None),
    )


def _starting(prefix: str, means: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in means.items() if name.startswith(prefix)}
