"""LLaMA on Megatron-Core's layers, built once for every engine.

Shape letters: B batch, S sequence, H hidden, V vocabulary rows of this rank without padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from llama_scale.layout.parameters import padded_vocab_size
from llama_scale.spec.model import ModelShape
from llama_scale.train import cpu
from llama_scale.train.adapting import encode_rows, linked, route_rows
from llama_scale.train.attention import document_mask
from llama_scale.train.building_adapters import add_extensions, prepare_training
from llama_scale.train.config import transformer_config
from llama_scale.train.engine import Route
from llama_scale.train.heads import TaskHeads
from llama_scale.train.initialize import initialize_chunks
from llama_scale.train.layers import block_spec
from llama_scale.train.loss import VocabularyRows, linear_loss
from llama_scale.train.mixture_head import MixtureHead, mixture_log_probs, mixture_loss
from llama_scale.train.mixture_rows import Layout, MixtureRows, branched, mixture_rows
from llama_scale.train.names import ANCHOR, logical_parameters
from llama_scale.train.rope import inverse_frequencies, rotation
from llama_scale.train.run_tasks import make_tasks
from llama_scale.train.statistics import Tally
from llama_scale.train.versions import GPTModel, TransformerConfig, mcore_random, parallel_state, tensor_parallel

if TYPE_CHECKING:
    from llama_scale.plan.run_plan import RunPlan
    from llama_scale.plan.stages import Chunk
    from llama_scale.plan.topology import Coordinates
    from llama_scale.spec.run import RunSpec
    from llama_scale.train.engine import MicroBatch


class LlamaModel(GPTModel):
    """One model chunk: embedding, consecutive layers, final norm and output layer, as far as the chunk has them.

    Args:
        config: Settings of the layers.
        shape: The model's numbers.
        chunk: What this chunk holds.
        padded_vocab: Rows of embedding and output layer over all ranks, padding included.
        virtual_rank: Number of this chunk on its pipeline rank; None without virtual stages.
        adapters: Names of the run's adapters, in the spec's order.
        mixture: How the run's mixture lays out rows, if it has one.
    """

    mixture: MixtureHead
    """On the chunk with the output layer, if the run has a mixture."""

    def __init__(
        self,
        config: TransformerConfig,
        *,
        shape: ModelShape,
        chunk: Chunk,
        padded_vocab: int,
        virtual_rank: int | None,
        adapters: Sequence[str] = (),
        mixture: MixtureRows | None = None,
    ) -> None:
        super().__init__(
            config,
            block_spec(config, len(chunk.layers), adapters=bool(adapters)),
            vocab_size=padded_vocab,
            max_sequence_length=shape.max_position_embeddings,
            pre_process=chunk.has_embedding,
            post_process=chunk.has_head,
            share_embeddings_and_output_weights=shape.tie_word_embeddings,
            position_embedding_type="none",
            parallel_output=True,
            vp_stage=virtual_rank,
        )
        self.shape = shape
        self.rows = _vocabulary_rows(shape.vocab_size, padded_vocab)
        # No buffer: engines cast those to the weights' format. On the device, so that no step waits for a copy.
        self.inverse_frequencies = inverse_frequencies(shape).to(cpu.model_device())
        self.anchor: torch.nn.Parameter | None
        self.register_parameter(ANCHOR, None)
        self.adapter_numbers = {name: number for number, name in enumerate(adapters)}
        self.mixture_rows = mixture
        self.statistics = Tally()
        self.task_heads: TaskHeads | None = None

    def forward(self, batch: MicroBatch, *, with_loss: bool = True) -> torch.Tensor:
        """Run this chunk on a micro-batch; input of later stages is set by Megatron-Core's schedule.

        Args:
            batch: Tensors ``[B, S]``.
            with_loss: On the last chunk, return the loss, not logits.

        Returns:
            Hidden states ``[S, B, H]`` of a chunk without head; else the summed loss over unmasked tokens (a scalar),
            or logits (of a mixture: log-probabilities) ``[B, S, V]`` of this rank's part of the vocabulary, without
            padding.
        """
        hidden = self.hidden_states(batch)
        if not self.post_process:
            return hidden
        if self.mixture_rows is None:
            return self._own_loss(hidden, batch, self.routes(batch)) if with_loss else self._logits(hidden)
        mixture, layout = self.mixture_rows, self._layout(batch)
        if not with_loss:
            return mixture_log_probs(self, hidden, batch, mixture=mixture, layout=layout)
        loss = mixture_loss(self, hidden, batch, mixture=mixture, layout=layout)
        alone = layout.outside if mixture.all_adapters(training=self.training) else self.routes(batch)
        return loss + self._own_loss(hidden, batch, alone) if alone else loss

    def _own_loss(self, hidden: torch.Tensor, batch: MicroBatch, routes: Sequence[Route]) -> torch.Tensor:
        """Return the summed loss of rows that each go through one adapter, or none."""
        if self.task_heads is not None:
            return self.task_heads.loss(hidden, batch, routes)
        # Who went which way does not matter any more: rows that follow each other are one product.
        starts = [r.start for i, r in enumerate(routes) if i == 0 or routes[i - 1].stop != r.start]
        stops = [r.stop for i, r in enumerate(routes) if i == len(routes) - 1 or routes[i + 1].start != r.stop]
        parts = []
        for rows in map(slice, starts, stops):
            parts.append(self.language_loss(hidden[:, rows], batch["labels"][rows], batch["loss_mask"][rows]))
        return torch.stack(parts).sum() if len(parts) > 1 else parts[0]

    def language_loss(self, hidden: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return the summed loss over the tokens of some rows.

        Args:
            hidden: Final hidden states ``[S, R, H]``, S of this rank if sequence parallel.
            labels: ``[R, S]``.
            weights: ``[R, S]`` weight of each token.
        """
        whole = self.whole_sequence(hidden).flatten(0, 1)
        flat, mask = labels.transpose(0, 1).reshape(-1), weights.transpose(0, 1).reshape(-1).float()
        return linear_loss(whole, self.head_weight(), labels=flat, mask=mask, rows=self.rows)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return (self.whole_sequence(hidden) @ self.head_weight()[: self.rows.count].t()).transpose(0, 1)

    def hidden_states(self, batch: MicroBatch) -> torch.Tensor:
        """Return ``[S, B, H]`` after this chunk's layers (and final norm); S of this rank if sequence parallel.

        From a mixture's first adapted layer on there are more rows than B, see ``mixture_rows``.
        """
        documents = batch.get("documents")
        mask = None if documents is None else document_mask(documents)
        rotary = rotation(self.inverse_frequencies, batch["position_ids"], dtype=self.config.params_dtype)
        context = None
        if self.mixture_rows is not None:
            rows = self._layout(batch).rows
            context = encode_rows(rows)
            mask = None if mask is None else branched(mask, rows, dim=0)
            rotary = rotary if rotary.shape[2] == 1 else branched(rotary, rows, dim=2)
        elif self.adapter_numbers:
            context = encode_rows(route_rows(self.routes(batch), self.adapter_numbers))
        return self.decoder(
            hidden_states=self._first_hidden(batch), attention_mask=mask, context=context, rotary_pos_emb=rotary
        )

    def _layout(self, batch: MicroBatch) -> Layout:
        assert self.mixture_rows is not None
        given = batch.get("routes", ())
        return self.mixture_rows.layout(given, rows=batch["tokens"].shape[0], training=self.training)

    def routes(self, batch: MicroBatch) -> tuple[Route, ...]:
        """Return which rows go which way; without word of the batch, all through the run's one adapter or the base."""
        if "routes" in batch:
            return batch["routes"]
        assert len(self.adapter_numbers) <= 1, "several adapters need routes"
        adapter = next(iter(self.adapter_numbers), None)
        return (Route(adapter=adapter, task=None, start=0, stop=batch["position_ids"].shape[0]),)

    def _first_hidden(self, batch: MicroBatch) -> torch.Tensor:
        """Return what this chunk's layers start from; later stages are given it by ``set_input_tensor``."""
        if self.pre_process:
            hidden = self.embedding(batch["tokens"], batch["position_ids"])
            # Recomputation differentiates with respect to its input, or not at all.
            if self.config.recompute_granularity == "full" and not hidden.requires_grad:
                hidden = hidden.detach().requires_grad_(torch.is_grad_enabled())
        else:
            hidden = self.decoder.input_tensor
        if self.anchor is not None:
            hidden = linked(hidden, self.anchor)
        self.decoder.set_input_tensor(hidden)
        return hidden

    def whole_sequence(self, hidden: torch.Tensor) -> torch.Tensor:
        """Enter the column-parallel output layer: gather the sequence, sum gradients over the tensor group."""
        if self.rows.group is None:
            return hidden
        if self.config.sequence_parallel:
            return tensor_parallel.gather_from_sequence_parallel_region(
                hidden, tensor_parallel_output_grad=True, group=self.rows.group
            )
        return tensor_parallel.copy_to_tensor_model_parallel_region(hidden, group=self.rows.group)

    def head_weight(self) -> torch.Tensor:
        """Return the output layer's matrix ``[padded V, H]``: its own, or the embedding's when tied."""
        if self.share_embeddings_and_output_weights:
            weight = self.shared_embedding_or_output_weight()
        else:
            weight = self.output_layer.weight
        if not hasattr(weight, "ds_id"):  # ZeRO 3 gathers it with the chunk, see DeepSpeedEngine
            # The layer itself is never called (the loss is fused with it), so what waits for its weight to be gathered
            # before a call has to be called by hand.
            for hook in self.output_layer._forward_pre_hooks.values():
                hook(self.output_layer, ())
        return weight

    def gather_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """Join the ranks' parts ``[B, S, V]`` into logits of the whole vocabulary, equal on all tensor ranks."""
        if self.rows.group is None:
            return logits
        # The parts differ in width: padding sits on the last ranks.
        width = self.output_layer.output_size_per_partition
        wide = logits.new_zeros(*logits.shape[:-1], width)
        wide[..., : logits.shape[-1]] = logits
        parts = [torch.empty_like(wide) for _ in range(self.rows.group.size())]
        torch.distributed.all_gather(parts, wide, group=self.rows.group)
        return torch.cat(parts, dim=-1)[..., : self.shape.vocab_size]


def _vocabulary_rows(vocab_size: int, padded_vocab: int) -> VocabularyRows:
    tp_size = parallel_state.get_tensor_model_parallel_world_size()
    width = padded_vocab // tp_size
    start = parallel_state.get_tensor_model_parallel_rank() * width
    return VocabularyRows(
        start=start,
        count=max(0, min(width, vocab_size - start)),
        group=parallel_state.get_tensor_model_parallel_group() if tp_size > 1 else None,
    )


def build_chunks(
    spec: RunSpec, plan: RunPlan, coordinates: Coordinates, *, initialize: bool = True
) -> list[LlamaModel]:
    """Build this rank's model chunks on its device.

    ``train.distributed.initialize`` has been called with the plan's topology.

    Args:
        spec: The run; its model, precision, recompute and parallel sections matter here.
        plan: Its plan.
        coordinates: This rank's place.
        initialize: Fill the weights from the spec's seed; otherwise they are undefined until a checkpoint is loaded.
    """
    cpu.adapt()
    # Nothing here is random, but sequence parallel layers enter the tracker's streams.
    mcore_random.model_parallel_cuda_manual_seed(spec.seed, force_reset_rng=True)
    config = transformer_config(spec, plan)
    adapters = [adapter.name for adapter in spec.adapters]
    padded = padded_vocab_size(plan.shape.vocab_size, tp_size=plan.topology.tp_size, multiple=plan.vocab_pad_multiple)
    stage = plan.stages[coordinates.pp_rank]
    with cpu.construction():
        chunks = [
            LlamaModel(
                config,
                shape=plan.shape,
                chunk=chunk,
                padded_vocab=padded,
                virtual_rank=virtual_rank if len(stage) > 1 else None,
                adapters=adapters,
                mixture=mixture_rows(spec),
            )
            for virtual_rank, chunk in enumerate(stage)
        ]
        add_extensions(chunks, spec, plan, coordinates)
    for local in logical_parameters(chunks, plan, coordinates):
        _mark_sharding(local.tensor, local.parameter.tp_dim)
        if local.parameter.partial_gradient and config.sequence_parallel:
            local.tensor.sequence_parallel = True
    prepare_training(chunks, plan, coordinates)
    if spec.tasks and chunks[-1].post_process:
        chunks[-1].task_heads = TaskHeads(make_tasks(spec), chunks[-1])
    if initialize:
        initialize_chunks(chunks, plan, coordinates, seed=spec.seed, std=spec.model.init_std)
    return chunks


def _mark_sharding(tensor: torch.nn.Parameter, tp_dim: int | None) -> None:
    """Tell Megatron-Core which tensors differ between tensor ranks: it marks them only when it fills them itself."""
    if tp_dim is not None and not getattr(tensor, "tensor_model_parallel", False):
        tensor.tensor_model_parallel = True
        tensor.partition_dim = min(tp_dim, tensor.dim() - 1)
        tensor.partition_stride = 1


def named_layers(chunks: list[LlamaModel]) -> Iterator[tuple[int, torch.nn.Module]]:
    """Yield each transformer layer of this rank with its global number, in the order of the forward pass."""
    for chunk in chunks:
        for layer in chunk.decoder.layers:
            yield layer.layer_number - 1, layer
