"""What one rank of the suite does with an adapter: train it, look into it, merge it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from llama_scale.extensions.adapter import COLUMN, LINEARS, LayerAdapter
from llama_scale.extensions.linears import linear_size
from llama_scale.layout.boxes import Box
from llama_scale.plan.topology import Coordinates
from llama_scale.train import distributed
from llama_scale.train.checkpointing import Checkpointer, Position
from llama_scale.train.conformance.report import Failed
from llama_scale.train.conformance.tiny import Tiny, samples
from llama_scale.train.engine import Engine, make_engine
from llama_scale.train.model import LlamaModel, build_chunks, named_layers

PROBE = 99
"""Step whose samples logits are compared on; no run gets there."""

Parts = Mapping[tuple[str, tuple[int, ...]], tuple[Box, torch.Tensor]]
"""(Name, offset) -> part of a logical tensor."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What one rank saw of a training.

    Args:
        losses: Loss of each step.
        norms: Gradient norm of each step.
        parts: This rank's parts of the parameters that train, at the end.
        change: How far each of them went.
        moved: Names of all parameters that changed.
        dtypes: Names of the number formats of what trains.
        saved_logits: Logits when the checkpoint was saved; None where none was, or this rank has no whole model.
    """

    losses: tuple[float, ...]
    norms: tuple[float, ...]
    parts: Parts
    change: Parts
    moved: frozenset[str]
    dtypes: frozenset[str]
    saved_logits: torch.Tensor | None = None


def train(tiny: Tiny, steps: int, save_at: int | None, folder: Path | None, resume: bool) -> Trained:
    """Train some steps.

    Args:
        tiny: The run.
        steps: Steps, counted from the beginning of the run.
        save_at: Save a checkpoint after so many steps.
        folder: Where checkpoints are.
        resume: Go on from the newest one.
    """
    engine = start(tiny)
    before = {key: tensor for key, (_, tensor) in _parts(engine, frozen=True).items()}
    first = 0
    checkpointer = None if folder is None else Checkpointer(folder, spec=tiny.spec(), plan=tiny.plan())
    if checkpointer is not None and resume:
        position = checkpointer.resume(engine)
        assert position is not None, "the suite saved one"
        first = position.step
    losses, norms = [], []
    saved_logits = None
    for step in range(first, steps):
        result = engine.train_step(samples(tiny, step=step), tiny.spec().optimizer.lr)
        if result.skipped or not math.isfinite(result.loss):
            raise Failed(f"the loss of step {step + 1} is not finite")
        losses.append(result.loss)
        norms.append(result.grad_norm)
        if checkpointer is not None and step + 1 == save_at:
            checkpointer.save(engine, Position(step=step + 1, samples=4 * (step + 1)), final=True)
            saved_logits = logits(engine.chunks[0], tiny) if tiny.world == 1 else None
    after = _parts(engine, frozen=True)
    trained = _parts(engine, frozen=False)
    return Trained(
        losses=tuple(losses),
        norms=tuple(norms),
        parts=trained,
        change={key: (box, tensor - before[key]) for key, (box, tensor) in trained.items()},
        moved=frozenset(key[0] for key, (_, tensor) in after.items() if not torch.equal(tensor, before[key])),
        dtypes=frozenset(str(tensor.dtype).removeprefix("torch.") for _, tensor in trained.values()),
        saved_logits=saved_logits,
    )


def start(tiny: Tiny) -> Engine:
    """Join the process group and build the run's engine."""
    distributed.initialize(tiny.plan().topology, device="cpu", timeout_s=120)
    return make_engine(tiny.spec(), tiny.plan())


def _parts(engine: Engine, *, frozen: bool) -> dict[tuple[str, tuple[int, ...]], tuple[Box, torch.Tensor]]:
    pieces = engine.model_pieces(frozen=frozen)
    return {(p.name, p.box.offset): (p.box, p.tensor.detach().clone()) for p in pieces}


def shapes(tiny: Tiny) -> str:
    """Call everything that the adapter says it does, with fp32 and bf16, and check what comes out.

    Raises:
        Failed: A name is unknown, or a result has another shape or number format than it has to have.
    """
    engine = start(tiny)
    called = 0
    for number, adapter in _adapters(engine):
        for dtype in (torch.float32, torch.bfloat16):
            for what, given, found in _calls(adapter, tiny, dtype):
                called += 1
                if not isinstance(found, torch.Tensor) or (found.shape, found.dtype) != (given.shape, given.dtype):
                    is_now = f"{list(found.shape)} {found.dtype}" if isinstance(found, torch.Tensor) else repr(found)
                    raise Failed(f"layer {number}: {what} made {is_now} of {list(given.shape)} {given.dtype}")
        _check_prefix(number, adapter, tiny)
    return f"{called} calls"


def _adapters(engine: Engine) -> Iterator[tuple[int, LayerAdapter]]:
    for number, layer in named_layers(engine.chunks):
        if layer.hooks is not None:
            for adapter in layer.adapters.children():
                yield number, adapter


def _calls(adapter: LayerAdapter, tiny: Tiny, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor, Any]]:
    """Yield what is called, the tensor that the result has to be like, and the result."""
    plan = tiny.plan()
    unknown = (adapter.outputs() | adapter.changes_input) - set(LINEARS) | adapter.blocks() - {"attention", "mlp"}
    if unknown:
        raise Failed(f"it changes {', '.join(sorted(unknown))}; there are {', '.join(LINEARS)}, attention and mlp")
    if wrong := adapter.changes_input & set(COLUMN):
        raise Failed(f"it changes the input of {', '.join(sorted(wrong))}; that can be done for o_proj and down_proj")
    with torch.no_grad():
        for target in sorted(adapter.outputs() | adapter.changes_input):
            outputs, inputs = linear_size(plan.shape, target)
            x, y = torch.randn(5, 2, inputs).to(dtype), torch.randn(5, 2, outputs).to(dtype)
            if target in adapter.changes_input:
                yield f"input({target!r})", x, adapter.input(target, x)
            if target in adapter.outputs():
                yield f"output({target!r})", y, adapter.output(target, x, y)
        for block in sorted(adapter.blocks()):
            y = torch.randn(5, 2, plan.shape.hidden_size).to(dtype)
            yield f"block({block!r})", y, adapter.block(block, y)


def _check_prefix(number: int, adapter: LayerAdapter, tiny: Tiny) -> None:
    prefix = adapter.prefix()
    if prefix is None:
        return
    shape = tiny.plan().shape
    wanted = (shape.num_kv_heads, shape.head_dim)
    if len(prefix) != 2 or any(p.dim() != 3 or tuple(p.shape[1:]) != wanted for p in prefix):
        found = " and ".join(str(list(p.shape)) for p in prefix)
        raise Failed(f"layer {number}: prefix() gave {found}; keys and values are [P, {wanted[0]}, {wanted[1]}] each")


def start_difference(tiny: Tiny, bare: Tiny) -> tuple[float, float]:
    """Return the largest difference of logits between a fresh adapter and the bare base, and the largest logit."""
    adapted = logits(start(tiny).chunks[0], tiny)
    base = logits(_bare_model(bare), bare)
    return float((adapted - base).abs().max()), float(base.abs().max())


def merge_difference(tiny: Tiny, bare: Tiny, steps: int) -> tuple[float, float]:
    """Train, then return the largest difference of logits with the adapter merged into the base, and the largest."""
    engine = start(tiny)
    for step in range(steps):
        engine.train_step(samples(tiny, step=step), tiny.spec().optimizer.lr)
    unmerged = logits(engine.chunks[0], tiny)
    base = _bare_model(bare)
    layers = dict(named_layers([base]))
    for number, adapter in _adapters(engine):
        for target in LINEARS:
            weight = adapter.context.base_weight(target)
            merged = adapter.merged_weight(target, weight.float())
            if merged.shape != weight.shape:
                raise Failed(f"merged_weight({target!r}) made {list(merged.shape)} of {list(weight.shape)}")
            write_weight(layers[number], target, merged)
    found = logits(base, bare)
    return float((found - unmerged).abs().max()), float(unmerged.abs().max())


def logits(model: LlamaModel, tiny: Tiny) -> torch.Tensor:
    """Return the logits of a one-process model for a step's samples."""
    with torch.no_grad():
        return torch.cat([model.gather_logits(model(row, with_loss=False)) for row in samples(tiny, step=PROBE)])


def _bare_model(bare: Tiny) -> LlamaModel:
    plan = bare.plan()
    coordinates = Coordinates(dp_rank=0, pp_rank=0, tp_rank=dist.get_rank())
    return build_chunks(bare.spec(), plan, coordinates)[0]


def write_weight(layer: torch.nn.Module, target: str, matrix: torch.Tensor) -> None:
    """Put a matrix ``[out, in]`` in the place of one of a layer's linear layers (one process, fused layout)."""
    attention, mlp = layer.self_attention, layer.mlp
    with torch.no_grad():
        if target in ("gate_proj", "up_proj"):
            mlp.linear_fc1.weight.chunk(2)[target == "up_proj"].copy_(matrix)
        elif target == "down_proj":
            mlp.linear_fc2.weight.copy_(matrix)
        elif target == "o_proj":
            attention.linear_proj.weight.copy_(matrix)
        else:
            fused = attention.linear_qkv.weight
            width = attention.hidden_size_per_attention_head
            groups = fused.view(attention.num_query_groups_per_partition, -1, width, fused.shape[-1])
            part = {"q_proj": slice(0, -2), "k_proj": slice(-2, -1), "v_proj": slice(-1, None)}[target]
            groups[:, part].copy_(matrix.view_as(groups[:, part]))
