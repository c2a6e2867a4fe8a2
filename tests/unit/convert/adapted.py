"""Checkpoints of adapters on a tiny base, as a run writes them, with random weights: none is at its neutral start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from llama_scale.checkpoint.manifest import BaseRecord, ExtensionRecord, StartRecord, load_manifest
from llama_scale.checkpoint.pieces import Piece
from llama_scale.checkpoint.writer import ShardWriter, build_manifest, commit
from llama_scale.convert.shards import Layout, check_layout, shard_parts, topology_record
from llama_scale.layout.boxes import Box
from llama_scale.plan.extensions import extra_parameters

LORA = {"kind": "lora", "options": {"rank": 3, "alpha": 7.0, "ranks": {"v_proj": 2}, "layers": {"last": 2}}}
RS_LORA = {
    "kind": "lora",
    "options": {"rank": 4, "targets": ["q_proj", "down_proj"], "rs_lora": True, "layers": [0, 3]},
}
DORA = {"kind": "lora", "options": {"rank": 2, "dora": True}}
IA3 = {"kind": "ia3", "options": {"layers": [1, 5]}}
PREFIX = {"kind": "prefix", "options": {"length": 3, "layers": {"last": 2}}}
BOTTLENECK = {"kind": "bottleneck", "options": {"layers": {"last": 3}}}


def record(*adapters: dict[str, Any], mixture: dict[str, Any] | None = None, **more: Any) -> ExtensionRecord:
    """Name adapters a0, a1, ... and describe them as a manifest does."""
    named = tuple({"name": f"a{number}", **adapter} for number, adapter in enumerate(adapters))
    return ExtensionRecord.model_validate({"seed": 5, "adapters": named, "mixture": mixture, **more})


def adapter_checkpoint(
    folder: Path,
    *,
    base: Path,
    extensions: ExtensionRecord,
    layout: Layout | None = None,
    seed: int = 1,
    start: StartRecord | None = None,
) -> Path:
    """Write the checkpoint of a run that trained these adapters on a base."""
    manifest = load_manifest(base)
    layout = layout or Layout()
    stages = check_layout(manifest.shape, layout)
    generator = torch.Generator().manual_seed(seed)
    table = extra_parameters(extensions, manifest.shape)
    values = {p.name: (p.init == "ones") + 0.3 * torch.randn(p.shape, generator=generator) for p in table}
    tmp = folder.with_name(folder.name + ".tmp")
    tmp.mkdir(parents=True)
    written = []
    for rank, rows in enumerate(shard_parts(manifest.shape, layout, stages, parameters=table)):
        writer = ShardWriter(tmp / f"shard-{rank:05d}.safetensors")
        for parameter, box in rows:
            piece = Piece(group="model", name=parameter.name, box=box, flat_start=None, numel=box.numel)
            part = values[parameter.name][box.slices_within(Box.whole(parameter.shape))].contiguous()
            writer.add_lazy(piece, global_shape=parameter.shape, dtype=torch.float32, load=lambda part=part: part)
        written.append(writer.finish())
    made = build_manifest(
        written,
        step=3,
        samples=12,
        engine="megatron",
        topology=topology_record(layout, stages),
        shape=manifest.shape,
        vocab_pad_multiple=manifest.vocab_pad_multiple,
        base=BaseRecord(kind="checkpoint", path=str(base), parameter_digest=manifest.parameter_digest),
        started_from=start,
        extensions=extensions,
    )
    commit(tmp, folder, made)
    return folder
