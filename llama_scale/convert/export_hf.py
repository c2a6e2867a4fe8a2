"""Export: a checkpoint of any layout becomes a Hugging Face folder, one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from llama_scale.checkpoint.manifest import Manifest
from llama_scale.checkpoint.reader import CheckpointReader
from llama_scale.convert.folders import (
    ORIGIN,
    REPORT,
    Progress,
    Silence,
    check_space,
    check_target,
    new_folder,
    read_json,
    write_json,
)
from llama_scale.convert.hf_config import CONFIG, GENERATION_CONFIG, make_generation_config, make_hf_config
from llama_scale.convert.hf_weights import HfWriter, Outline, tensor_sha256
from llama_scale.convert.import_hf import DTYPES
from llama_scale.convert.ledger import Ledger
from llama_scale.convert.mapping import HfTensor, hf_tensors
from llama_scale.convert.shards import Layout, padding_rows
from llama_scale.convert.threads import one_torch_thread
from llama_scale.convert.tokenizer import find_tokenizer, write_tokenizer
from llama_scale.errors import CheckpointError, ConvertError
from llama_scale.layout.boxes import Box
from llama_scale.layout.parameters import iter_parameters

Proof = Callable[[Path], dict[str, Any]]
"""Compares the finished, not yet visible folder with the checkpoint; returns figures for the report, or raises."""


def export_hf(
    checkpoint: Path,
    target: Path,
    *,
    dtype: str | None = None,
    shard_bytes: int = 5_000_000_000,
    tokenizer: Path | None = None,
    proof: Proof | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a checkpoint's weights, config and tokenizer as a folder that transformers loads.

    Args:
        checkpoint: A complete checkpoint of any layout.
        target: New folder; it appears when everything is written and proven.
        dtype: ``fp32`` or ``bf16``; None keeps the checkpoint's. ``fp32`` of a bf16 run takes its fp32 masters.
        shard_bytes: Most bytes of tensors in one file.
        tokenizer: SentencePiece model or Hugging Face folder; None: what the checkpoint or its run came with.
        proof: Is called before the folder appears.
        progress: Is told of the bytes written.

    Returns:
        What report.json holds.

    Raises:
        ConvertError: The checkpoint is damaged or of another model, transformers cannot hold the model, the tokenizer
            does not fit, writing failed, or the proof did.
    """
    check_target(target)
    try:
        reader = CheckpointReader(checkpoint, verify="hashes")
        with new_folder(target) as tmp:
            report = _write(reader, tmp, dtype=dtype, shard_bytes=shard_bytes, tokenizer=tokenizer, progress=progress)
            if proof is not None:
                report["verify"] = proof(tmp)
            write_json(tmp / REPORT, report)
    except CheckpointError as error:
        raise ConvertError(str(error)) from error
    return report


def source_group(manifest: Manifest, dtype: torch.dtype) -> str:
    """Return the group that an export of this element type reads: fp32 masters where there are some to be had."""
    return "master" if dtype == torch.float32 and "master" in manifest.tensors else "model"


def stored_dtype(manifest: Manifest) -> torch.dtype:
    """Return the element type of the checkpoint's weights.

    Raises:
        ConvertError: It has no weights, or several types of them.
    """
    found = {entry.dtype for entry in manifest.tensors.get("model", {}).values()}
    if len(found) != 1:
        what = f"weights of the types {', '.join(sorted(found))}" if found else "no weights"
        raise ConvertError(f"the checkpoint of step {manifest.step} holds {what}; choose --dtype fp32 or bf16")
    dtype: torch.dtype = getattr(torch, found.pop())
    return dtype


def _write(
    reader: CheckpointReader,
    folder: Path,
    *,
    dtype: str | None,
    shard_bytes: int,
    tokenizer: Path | None,
    progress: Progress | None,
) -> dict[str, Any]:
    manifest = reader.manifest
    shape = manifest.shape
    chosen = DTYPES[dtype] if dtype is not None else stored_dtype(manifest)
    group = source_group(manifest, chosen)
    origin = reader.folder / ORIGIN
    found = find_tokenizer(reader.folder, asked=tokenizer)
    token_ids = None if found is None else write_tokenizer(found, folder, vocab_size=shape.vocab_size)
    config = make_hf_config(
        shape, dtype=str(chosen).removeprefix("torch."), base=read_json(origin / CONFIG), token_ids=token_ids
    )
    write_json(folder / CONFIG, config)
    write_json(folder / GENERATION_CONFIG, make_generation_config(config, base=read_json(origin / GENERATION_CONFIG)))
    ledger = _write_weights(
        reader, folder, group=group, dtype=chosen, shard_bytes=shard_bytes, progress=progress or Silence()
    )
    layout = Layout(tp_size=manifest.topology.tp_size, vocab_pad_multiple=manifest.vocab_pad_multiple)
    return {
        "kind": "export",
        "source": str(reader.folder),
        "step": manifest.step,
        "group": group,
        "parameter_digest": manifest.parameter_digest,
        "dtype": config["dtype"],
        "tokenizer": None if found is None else str(found),
        "padding_rows_in_memory": padding_rows(shape, layout),
        **ledger.report(),
    }


def _write_weights(
    reader: CheckpointReader, folder: Path, *, group: str, dtype: torch.dtype, shard_bytes: int, progress: Progress
) -> Ledger:
    shape = reader.manifest.shape
    tensors = hf_tensors(shape)
    _check_names(reader, group)
    ledger = Ledger(
        sources={p.name: p.shape for p in iter_parameters(shape)},
        targets={tensor.name: tensor.shape for tensor in tensors.values()},
    )
    outlines = [Outline(name=t.name, shape=t.shape, dtype=dtype) for t in tensors.values()]
    total = sum(outline.nbytes for outline in outlines)
    check_space(folder, needed=total)
    progress.start("exporting", total)
    with (
        one_torch_thread(),
        ThreadPoolExecutor(1, thread_name_prefix="targets") as hasher,
        HfWriter(folder, outlines=outlines, shard_bytes=shard_bytes) as writer,
    ):
        for outline, tensor in zip(outlines, tensors.values(), strict=True):
            data = _assemble(reader, tensor, group=group, dtype=dtype, ledger=ledger)
            digest = hasher.submit(tensor_sha256, data)
            writer.write(tensor.name, data)
            ledger.digest_target(tensor.name, f"sha256:{digest.result()}")
            reader.release()
            progress.advance(outline.nbytes)
        writer.finish()
    for name, entry in reader.manifest.tensors[group].items():
        ledger.digest_source(name, f"piecewise:{entry.digest}")
    ledger.balance()
    return ledger


def _check_names(reader: CheckpointReader, group: str) -> None:
    """Refuse a checkpoint that holds other tensors than its shape says: an export would lose them."""
    wanted = {p.name for p in iter_parameters(reader.manifest.shape)}
    held = set(reader.tensors(group))
    for names, word in ((wanted - held, "lacks"), (held - wanted, "holds besides the model's")):
        if names:
            raise ConvertError(f"checkpoint {reader.folder} {word} {group}/{min(names)} ({len(names)} such tensors)")


def _assemble(
    reader: CheckpointReader, tensor: HfTensor, *, group: str, dtype: torch.dtype, ledger: Ledger
) -> torch.Tensor:
    out = torch.empty(tensor.shape, dtype=dtype)
    for part in tensor.slices:
        box = part.native_box
        place = out[part.hf_box.slices_within(Box.whole(tensor.shape))].view(box.shape)
        reader.read(group, part.native_name, box, out=place)
        ledger.copy(source=part.native_name, source_box=box, target=tensor.name, target_box=part.hf_box)
    return out
