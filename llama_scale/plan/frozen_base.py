"""What training on a frozen base consists of, for the cost model: from the parameters that plugins add."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from llama_scale.layout.parameters import Parameter
from llama_scale.plan.extensions import extra_parameters
from llama_scale.plan.extra_memory import first_trained_layer, mixture_copies
from llama_scale.plan.workload import Dimensions, Frozen, Kept

if TYPE_CHECKING:
    from llama_scale.spec.run import RunSpec


def spec_extra(spec: RunSpec) -> tuple[Parameter, ...]:
    """Return the parameters that a resolved spec's adapters, heads and mixture add; none without adapters.

    Raises:
        SpecError: A plugin is missing or broken, or its options do not fit the model.
    """
    if not spec.adapters:
        return ()
    from llama_scale.spec.model import ModelShape  # lazy: pydantic's models only where plugins are asked

    shape = ModelShape.model_validate(spec.model.model_dump(include=set(ModelShape.model_fields)))
    return extra_parameters(spec, shape)


def spec_frozen(spec: RunSpec, extra: Sequence[Parameter], *, tp_size: int) -> Frozen | None:
    """Return what trains under a spec's adapters; None where the base does.

    Args:
        spec: The resolved spec.
        extra: From :func:`spec_extra`.
        tp_size: Tensor parallel ranks.
    """
    if not spec.adapters:
        return None
    model = spec.model
    assert model.kind == "inline", "a resolved spec has an inline model"
    numels = [0] * model.num_layers
    head = 0
    met: dict[int, list[Parameter]] = defaultdict(list)
    for parameter in extra:
        numel = _local(parameter, tp_size)
        if parameter.layer is None:
            head += numel if parameter.trainable else 0
            continue
        met[parameter.layer].append(parameter)
        numels[parameter.layer] += numel if parameter.trainable else 0
    fullest = max(met.values(), key=len, default=[])
    return Frozen(
        first_layer=first_trained_layer(extra, model.num_layers),
        copies=mixture_copies(spec),
        matrices=tuple(_matrix(parameter, tp_size) for parameter in fullest if len(parameter.shape) <= 2),
        adapters=max(1, len({parameter.owner for parameter in fullest})),
        kept=tuple(_kept(fullest, model.hidden_size, tp_size=tp_size)),
        layer_numel=tuple(numels),
        head_numel=head,
    )


def lora_frozen(model: Dimensions, *, rank: int, tp_size: int) -> Frozen:
    """Return LoRA of this rank on all linear layers of all layers, for published runs that say no more than "LoRA"."""
    queries, keys = model.queries, model.keys_values // 2
    width, tp = max(1, model.active_mlp_width), tp_size
    column = [(queries, model.hidden), (keys, model.hidden), (keys, model.hidden)]
    column += [(width, model.hidden)] * (model.mlp_matrices - 1)
    row = [(model.hidden, queries), (model.hidden, width)]
    matrices = [pair for rows, columns in column for pair in ((rank, columns), (max(1, rows // tp), rank))]
    matrices += [pair for rows, columns in row for pair in ((rank, max(1, columns // tp)), (rows, rank))]
    numel = sum(rows * columns for rows, columns in matrices)
    inputs = [Kept(model.hidden, by_sequence=True, shared="attention")] * 3
    inputs += [Kept(model.hidden, by_sequence=True, shared="mlp")] * (model.mlp_matrices - 1)
    inputs += [Kept(max(1, columns // tp)) for _, columns in row]
    updates = [Kept(rank)] * len(column) + [Kept(rank, by_sequence=True)] * len(row)
    return Frozen(
        first_layer=0, matrices=tuple(matrices), kept=(*inputs, *updates), layer_numel=(numel,) * model.layers
    )


_INPUTS = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "attention"),
    **dict.fromkeys(("gate_proj", "up_proj"), "mlp"),
    **dict.fromkeys(("o_proj", "down_proj"), ""),
}
"""Linear layer -> name of the input that it has in common with others; empty: with none."""


def _kept(parameters: Sequence[Parameter], hidden_size: int, *, tp_size: int) -> Iterator[Kept]:
    """Yield what adapters with these parameters in a layer keep: inputs of matrices, and what vectors scale.

    A vector that is not named for a linear layer is taken for a shift, which keeps nothing.
    """
    updated = {(p.owner, _module(p)) for p in parameters if len(p.shape) == 2}
    for parameter in parameters:
        rows, columns = _matrix(parameter, tp_size)
        owner, name, cut = parameter.owner, _module(parameter), parameter.partial_gradient
        if len(parameter.shape) == 2:
            shared = _INPUTS.get(name, "") if columns == hidden_size else ""
            yield Kept(columns, by_sequence=cut, shared=shared and f"{owner} {shared}")
        elif len(parameter.shape) == 1 and name in _INPUTS:
            yield Kept(rows, by_sequence=cut, fp32=(owner, name) in updated)


def _module(parameter: Parameter) -> str:
    """Return what an adapter's parameter is named for: ``q_proj`` of ``...q_proj.lora_A``."""
    return parameter.name.split(".")[-2]


def _local(parameter: Parameter, tp_size: int) -> int:
    return parameter.numel // (1 if parameter.tp_dim is None else tp_size)


def _matrix(parameter: Parameter, tp_size: int) -> tuple[int, int]:
    sizes = [size // tp_size if dim == parameter.tp_dim else size for dim, size in enumerate(parameter.shape)]
    return (max(1, sizes[0]), max(1, sizes[1]) if len(sizes) == 2 else 0)
