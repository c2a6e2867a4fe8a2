"""A stage of the model as DeepSpeed's PipelineModule, and batches through its engine.

Each stage is one "layer" to DeepSpeed: which transformer layers it holds was decided by the plan, as for the other
engines, and recomputation is Megatron-Core's inside of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from llama_scale.train.deepspeed_import import PipelineModule, PipeModelDataParallelTopology, quiet
from llama_scale.train.versions import parallel_state

if TYPE_CHECKING:
    from llama_scale.plan.run_plan import RunPlan
    from llama_scale.plan.topology import Coordinates
    from llama_scale.train.engine import MicroBatch, MicroBatches
    from llama_scale.train.model import LlamaModel


class _Stage(nn.Module):
    """Call a model chunk with what the previous stage sent; masks and positions come from the batch at hand.

    A mixture repeats the rows of its tasks, not those of other heads, so that micro-batches differ in rows behind the
    first adapted layer. DeepSpeed sends tensors of one shape only: they are padded to the most rows of the batch.
    """

    def __init__(self, chunk: LlamaModel, *, repeated: bool) -> None:
        """Hold a chunk.

        Args:
            chunk: The stage's chunk.
            repeated: Whether the stage before sends a mixture's rows once for every adapter.
        """
        super().__init__()
        self.chunk = chunk
        self.repeated = repeated
        self.batches: Iterator[MicroBatch] = iter(())
        self.most = 0

    def forward(self, received: torch.Tensor) -> torch.Tensor:
        # Both of DeepSpeed's schedules run a stage's forward passes in the order of the micro-batches.
        batch = next(self.batches)
        if not self.chunk.pre_process:
            rows = self.rows(batch, training=self.training) if self.repeated else batch["tokens"].shape[0]
            self.chunk.set_input_tensor(received[:, :rows])
        output = self.chunk(batch)
        if self.chunk.post_process:
            return output
        return F.pad(output, (0, 0, 0, self.most - output.shape[1]))

    def rows(self, micro: MicroBatch, *, training: bool) -> int:
        """Return the rows of a micro-batch behind the first adapted layer of a mixture."""
        mixture, rows = self.chunk.mixture_rows, micro["tokens"].shape[0]
        if mixture is None:
            return rows
        return mixture.layout(micro.get("routes", ()), rows=rows, training=training).rows[-1].stop


class StagePipeline(PipelineModule):
    """Hold this rank's stage.

    Args:
        chunk: The stage's model chunk.
        plan: The run's plan; DeepSpeed's mesh has the same order of ranks.
        coordinates: This rank's place.
    """

    def __init__(self, chunk: LlamaModel, plan: RunPlan, coordinates: Coordinates) -> None:
        topology = plan.topology
        before = sum(len(part.layers) for parts in plan.stages[: coordinates.pp_rank] for part in parts)
        adapted = [p.layer for p in plan.extra if p.owner.startswith("adapter:") and p.layer is not None]
        stage = _Stage(chunk, repeated=any(layer < before for layer in adapted))
        stage.fillers = _fillers(chunk)
        places: list[nn.Module] = [nn.Identity() for _ in range(topology.pp_size)]
        places[coordinates.pp_rank] = stage
        self._scale = 1.0
        mesh = PipeModelDataParallelTopology(num_pp=topology.pp_size, num_mp=topology.tp_size, num_dp=topology.dp_size)
        with quiet():
            super().__init__(layers=places, topology=mesh, loss_fn=self._scaled, partition_method="uniform")
        self.stage = stage
        self._tied = _tied_copy(chunk)
        if self._tied is not None and not chunk.pre_process:
            # The first stage's copy counts in the gradient norm.
            self._tied.ds_pipe_replicated = True

    def get_tied_weights_and_groups(self) -> list[tuple[nn.Parameter, Any]]:
        """Name the weights whose gradients are summed over first and last stage before the update."""
        return [] if self._tied is None else [(self._tied, parallel_state.get_embedding_group())]

    def train_batch(self, engine: Any, batch: MicroBatches, *, scale: float) -> float:
        """Run one training step of the pipeline; returns the mean over micro-batches and replicas of loss x scale."""
        self._load(engine, batch, scale=scale, training=True)
        return float(engine.train_batch(data_iter=_inputs(batch)))

    def eval_batch(self, engine: Any, batch: MicroBatches, *, scale: float) -> float:
        """Do the same forward only."""
        self._load(engine, batch, scale=scale, training=False)
        loss = engine.eval_batch(_inputs(batch), num_micro_batches=len(batch))
        self.train()
        return float(loss)

    def _load(self, engine: Any, batch: MicroBatches, *, scale: float, training: bool) -> None:
        most = max(self.stage.rows(micro, training=training) for micro in batch)
        if most != self.stage.most:
            # DeepSpeed keeps the shape that it has seen first.
            engine.reset_activation_shape()
        self.stage.most = most
        self.stage.batches = iter(batch)
        self._scale = scale

    def _scaled(self, loss_sum: torch.Tensor, _labels: torch.Tensor) -> torch.Tensor:
        return loss_sum * self._scale


def _inputs(batch: MicroBatches) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return iter([(micro["tokens"], micro["labels"]) for micro in batch])


def _tied_copy(chunk: LlamaModel) -> nn.Parameter | None:
    if not chunk.share_embeddings_and_output_weights or not (chunk.pre_process or chunk.post_process):
        return None
    weight = chunk.shared_embedding_or_output_weight()
    return weight if weight.requires_grad else None


def _fillers(chunk: LlamaModel) -> nn.ParameterList:
    """Return a matrix or a vector without use where this stage trains none: each stage has one of both.

    DeepSpeed adds up the gradient's norm over all stages, one group of parameters after the other: a stage that has
    only one of the two (``adamw.parameter_groups``) would wait for ever.
    """
    present = {min(p.dim(), 2) for p in chunk.parameters() if p.requires_grad}
    like = next(p for p in chunk.parameters() if p.requires_grad)
    return nn.ParameterList(nn.Parameter(like.new_zeros((1,) * dims)) for dims in sorted({1, 2} - present))
