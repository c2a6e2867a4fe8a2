"""Building the modules that extensions add to a rank's chunks: adapters into layers, parameters at the model's end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from llama_scale.extensions import discover
from llama_scale.extensions.adapter import LayerAdapter, LayerContext, Tensor, attach
from llama_scale.layout.parameters import Parameter, adapter_parameter, local_box, module_name
from llama_scale.train.mixture_head import make_head
from llama_scale.train.names import ANCHOR, logical_parameters
from llama_scale.train.versions import parallel_state, tensor_parallel

if TYPE_CHECKING:
    from llama_scale.plan.run_plan import RunPlan
    from llama_scale.plan.topology import Coordinates
    from llama_scale.spec.model import ModelShape
    from llama_scale.spec.run import RunSpec
    from llama_scale.train.layers import LlamaLayer
    from llama_scale.train.model import LlamaModel


class MegatronTensor(Tensor):
    """The run's tensor parallel group; see ``extensions.adapter.Tensor``."""

    def __init__(self, group: dist.ProcessGroup, *, sequence_parallel: bool) -> None:
        self.group = group
        self.size = group.size()
        self.rank = group.rank()
        self.sequence_parallel = sequence_parallel

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        """See ``Tensor.enter``."""
        if self.sequence_parallel:
            return tensor_parallel.gather_from_sequence_parallel_region(
                x, tensor_parallel_output_grad=True, group=self.group
            )
        return tensor_parallel.copy_to_tensor_model_parallel_region(x, group=self.group)

    def leave(self, x: torch.Tensor) -> torch.Tensor:
        """See ``Tensor.leave``."""
        if self.sequence_parallel:
            return tensor_parallel.reduce_scatter_to_sequence_parallel_region(x, group=self.group)
        return tensor_parallel.reduce_from_tensor_model_parallel_region(x, group=self.group)

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """See ``Tensor.sum``."""
        total = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=self.group)
        return total


def make_tensor(*, sequence_parallel: bool) -> Tensor:
    """Return this rank's view of the tensor parallel group."""
    if parallel_state.get_tensor_model_parallel_world_size() == 1:
        return Tensor()
    return MegatronTensor(parallel_state.get_tensor_model_parallel_group(), sequence_parallel=sequence_parallel)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedAdapter:
    """An adapter of the spec with what it is made of.

    Args:
        name: Its name in the spec.
        implementation: Class of its part in a layer.
        options: Its options, typed.
    """

    name: str
    implementation: type[LayerAdapter]
    options: Any


def load_adapters(spec: RunSpec) -> tuple[LoadedAdapter, ...]:
    """Import the spec's adapters, in its order.

    Raises:
        PluginError: One is missing or broken.
    """
    loaded = []
    for adapter in spec.adapters:
        descriptor = discover.adapter(adapter.kind)
        options = discover.read_options(descriptor, adapter.options)
        implementation: type[LayerAdapter] = discover.implementation(descriptor)
        loaded.append(LoadedAdapter(name=adapter.name, implementation=implementation, options=options))
    return tuple(loaded)


def add_extensions(chunks: Sequence[LlamaModel], spec: RunSpec, plan: RunPlan, coordinates: Coordinates) -> None:
    """Add to a rank's chunks what the plan lists beside the base, uninitialised."""
    adapters = load_adapters(spec)
    tensor = make_tensor(sequence_parallel=spec.parallel.sequence)
    shared: list[dict[str, Any]] = [{} for _ in adapters]
    device = next(chunks[0].parameters()).device
    for chunk, module in zip(plan.stages[coordinates.pp_rank], chunks, strict=True):
        for number, layer in zip(chunk.layers, module.decoder.layers, strict=True):
            found: dict[int, tuple[str, LayerAdapter]] = {}
            for index, adapter in enumerate(adapters):
                prefix = adapter_parameter(number, adapter.name, "")
                rows = [row for row in plan.extra if row.name.startswith(prefix)]
                if not rows:
                    continue
                context = LayerContext(
                    layer=number,
                    sizes=_sizes(plan.shape),
                    tensor=tensor,
                    base_weight=_BaseWeights(layer),
                    seed=spec.seed,
                    shared=shared[index],
                )
                built = adapter.implementation(adapter.options, context)
                for row in rows:
                    attach(built, row.name.removeprefix(prefix), _parameter(row, plan, coordinates, device))
                found[index] = (module_name(adapter.name), built)
            if found:
                layer.add_adapters(found)
        if chunk.has_head:
            if spec.mixture is not None:
                module.mixture = make_head(spec, tally=module.statistics)
            for row in plan.extra:
                if row.place == "head":
                    attach(module, row.name, _parameter(row, plan, coordinates, device))


def prepare_training(chunks: Sequence[LlamaModel], plan: RunPlan, coordinates: Coordinates) -> None:
    """Freeze what does not train, and let backward passes end where nothing below trains."""
    for local in logical_parameters(chunks, plan, coordinates):
        local.tensor.requires_grad_(plan.trains(local.parameter))
    if plan.base_trainable:
        return
    trained = [row.layer for row in plan.extra if row.trainable and row.layer is not None]
    first = min(trained, default=plan.shape.num_layers)
    for chunk, module in zip(plan.stages[coordinates.pp_rank], chunks, strict=True):
        for number, layer in zip(chunk.layers, module.decoder.layers, strict=True):
            layer.frozen_below = number < first
        if not any(parameter.requires_grad for parameter in module.parameters()):
            device = next(module.parameters()).device
            setattr(module, ANCHOR, nn.Parameter(torch.zeros(1, dtype=torch.float32, device=device)))


def _parameter(row: Parameter, plan: RunPlan, coordinates: Coordinates, device: torch.device) -> nn.Parameter:
    box = local_box(
        row,
        tp_rank=coordinates.tp_rank,
        tp_size=plan.topology.tp_size,
        vocab_pad_multiple=plan.vocab_pad_multiple,
    )
    return nn.Parameter(torch.empty(box.shape, dtype=torch.float32, device=device))


def _sizes(shape: ModelShape) -> dict[str, int]:
    names = ("hidden_size", "ffn_hidden_size", "num_heads", "num_kv_heads", "head_dim", "num_layers")
    return {name: getattr(shape, name) for name in names}


class _BaseWeights:
    """Cut a layer's fused matrices into those of the Hugging Face names; see ``LayerContext.base_weight``."""

    def __init__(self, layer: LlamaLayer) -> None:
        self._attention = layer.self_attention
        self._mlp = layer.mlp

    def __call__(self, target: str) -> torch.Tensor:
        if target in ("gate_proj", "up_proj"):
            gate, up = self._mlp.linear_fc1.weight.detach().chunk(2)
            return gate if target == "gate_proj" else up
        if target == "down_proj":
            return self._mlp.linear_fc2.weight.detach()
        if target == "o_proj":
            return self._attention.linear_proj.weight.detach()
        fused = self._attention.linear_qkv.weight.detach()
        groups = fused.view(
            self._attention.num_query_groups_per_partition,
            -1,
            self._attention.hidden_size_per_attention_head,
            fused.shape[-1],
        )
        part = {"q_proj": slice(0, -2), "k_proj": slice(-2, -1), "v_proj": slice(-1, None)}[target]
        return groups[:, part].reshape(-1, fused.shape[-1])
