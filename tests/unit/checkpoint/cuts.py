"""Random and regular ways to cut tensors into pieces, and small whole checkpoints made of them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from hypothesis import strategies as st

from llama_scale.checkpoint.manifest import TopologyRecord, checkpoint_name
from llama_scale.checkpoint.retention import temporary_folder
from llama_scale.checkpoint.writer import ShardWriter, build_manifest, commit
from llama_scale.layout.boxes import Box
from llama_scale.spec.model import ModelShape

SHAPE = ModelShape(
    hidden_size=8, ffn_hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, vocab_size=11
)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A piece with its elements, as an engine yields it."""

    group: str
    name: str
    global_shape: tuple[int, ...]
    box: Box
    flat_start: int | None
    tensor: torch.Tensor


def cut_of(
    tensor: torch.Tensor, box: Box, flat: tuple[int, int] | None = None, *, group: str = "model", name: str = "w"
) -> Cut:
    part = tensor[box.slices_within(Box.whole(tuple(tensor.shape)))]
    held = part if flat is None else part.reshape(-1)[flat[0] : flat[0] + flat[1]]
    return Cut(
        group=group,
        name=name,
        global_shape=tuple(tensor.shape),
        box=box,
        flat_start=None if flat is None else flat[0],
        tensor=held,
    )


@st.composite
def boxes(draw: st.DrawFn, shape: tuple[int, ...], depth: int = 3) -> list[Box]:
    """Cut a tensor into disjoint boxes by splitting one dim at a time."""
    found = [Box.whole(shape)]
    for _ in range(draw(st.integers(0, depth))):
        index = draw(st.integers(0, len(found) - 1))
        box = found[index]
        wide = [d for d, n in enumerate(box.shape) if n > 1]
        if not wide:
            continue
        dim = draw(st.sampled_from(wide))
        at = draw(st.integers(1, box.shape[dim] - 1))
        low = Box(box.offset, tuple(at if d == dim else n for d, n in enumerate(box.shape)))
        high = Box(
            tuple(o + at if d == dim else o for d, o in enumerate(box.offset)),
            tuple(n - at if d == dim else n for d, n in enumerate(box.shape)),
        )
        found[index : index + 1] = [low, high]
    return found


@st.composite
def cuts(draw: st.DrawFn, tensor: torch.Tensor) -> list[Cut]:
    """Cut a tensor into boxes and some of these into flat ranges."""
    pieces: list[Cut] = []
    for box in draw(boxes(tuple(tensor.shape))):
        if draw(st.booleans()):
            pieces.append(cut_of(tensor, box))
            continue
        points = sorted(draw(st.sets(st.integers(1, max(1, box.numel - 1)), max_size=3)) - {box.numel})
        edges = [0, *points, box.numel]
        pieces += [cut_of(tensor, box, (a, b - a)) for a, b in itertools.pairwise(edges)]
    return pieces


shapes = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)


def save(
    root: Path, shards: list[list[Cut]], *, step: int = 1, metrics: Mapping[str, float | None] | None = None
) -> Path:
    """Write a complete checkpoint of these shards."""
    final = root / checkpoint_name(step)
    tmp = temporary_folder(final, token="0a")
    tmp.mkdir(parents=True)
    written = []
    for rank, pieces in enumerate(shards):
        writer = ShardWriter(tmp / f"shard-{rank:05d}.safetensors")
        for piece in pieces:
            writer.add(piece)
        written.append(writer.finish())
    manifest = build_manifest(
        written,
        step=step,
        samples=4 * step,
        engine="ddp",
        topology=TopologyRecord(),
        shape=SHAPE,
        metrics=dict(metrics or {}),
    )
    commit(tmp, final, manifest)
    return final
