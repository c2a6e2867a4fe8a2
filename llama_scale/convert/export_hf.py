"""Export: a checkpoint of any layout becomes a Hugging Face folder, one tensor in memory at a time.

The folder is a plain LLaMA: the model itself, or its base with one adapter merged into the matrices.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from llama_scale.convert.adapters import find_adapter, stored_adapters
from llama_scale.convert.folders import (
    REPORT,
    Progress,
    Proof,
    Silence,
    check_space,
    check_target,
    checkpoint_faults,
    new_folder,
    write_json,
)
from llama_scale.convert.heads import write_heads
from llama_scale.convert.hf_config import (
    CONFIG,
    GENERATION_CONFIG,
    make_generation_config,
    make_hf_config,
    with_stops,
)
from llama_scale.convert.hf_weights import HfWriter, Outline, tensor_sha256
from llama_scale.convert.inventory import DTYPES
from llama_scale.convert.ledger import Ledger
from llama_scale.convert.mapping import hf_tensors
from llama_scale.convert.merge import Merger
from llama_scale.convert.origin import Origin, origin_of
from llama_scale.convert.shards import Layout, padding_rows
from llama_scale.convert.threads import one_torch_thread
from llama_scale.convert.tokenizer import write_tokenizer
from llama_scale.convert.weights import Weights
from llama_scale.errors import ConvertError
from llama_scale.layout.parameters import EMBEDDING, iter_parameters
from llama_scale.spec.model import ModelShape


@checkpoint_faults()
def export_hf(
    checkpoint: Path,
    target: Path,
    *,
    adapter: str | None = None,
    merge: bool = False,
    base: Path | None = None,
    dtype: str | None = None,
    shard_bytes: int = 5_000_000_000,
    tokenizer: Path | None = None,
    proof: Proof | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a checkpoint's weights, config and tokenizer as a folder that transformers loads as a LLaMA.

    Args:
        checkpoint: A complete checkpoint of any layout.
        target: New folder; it appears when everything is written and proven.
        adapter: With ``merge``: which; None: the only one.
        merge: Merge an adapter into the base's matrices.
        base: Where the checkpoint's frozen base is now; None: where it was.
        dtype: ``fp32`` or ``bf16``; None keeps the checkpoint's. ``fp32`` of a bf16 run takes its fp32 masters.
        shard_bytes: Most bytes of tensors in one file.
        tokenizer: SentencePiece model or Hugging Face folder; None: what the checkpoint or its run came with.
        proof: Is called before the folder appears.
        progress: Is told of the bytes written.

    Returns:
        What report.json holds.

    Raises:
        ConvertError: The checkpoint is damaged or of another model, an adapter cannot be merged, transformers cannot
            hold the model, the tokenizer does not fit, writing failed, or the proof did.
    """
    check_target(target)
    weights = Weights(checkpoint, base=base, verify="hashes")
    merger = Merger(find_adapter(weights, adapter)) if merge else None
    names = [found.name for found in stored_adapters(weights)]
    if merger is None and names:
        raise ConvertError(
            f"checkpoint {checkpoint} holds adapters ({', '.join(names)}), which a plain model has no place for; "
            "choose --as merged, peft or mixture"
        )
    with new_folder(target) as tmp:
        report = write_model(
            weights, tmp, merger=merger, dtype=dtype, shard_bytes=shard_bytes, tokenizer=tokenizer, progress=progress
        )
        report["heads"] = write_heads(weights, tmp)
        if proof is not None:
            report["verify"] = proof(tmp)
        write_json(tmp / REPORT, report)
    return report


def write_model(
    weights: Weights,
    folder: Path,
    *,
    merger: Merger | None = None,
    dtype: str | None = None,
    shard_bytes: int = 5_000_000_000,
    tokenizer: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write config, tokenizer and weights of the base into an existing folder, an adapter merged into it or not.

    Returns:
        What report.json says of it.

    Raises:
        ConvertError: See ``export_hf``.
    """
    manifest, shape = weights.manifest, weights.shape
    chosen = DTYPES[dtype] if dtype is not None else weights.dtype
    origin = origin_of(weights.folder, base=None if weights.base is None else weights.base.folder, tokenizer=tokenizer)
    config = _write_small_files(origin, folder, shape=shape, dtype=str(chosen).removeprefix("torch."))
    ledger = _write_weights(
        weights, folder, merger=merger, dtype=chosen, shard_bytes=shard_bytes, progress=progress or Silence()
    )
    layout = Layout(tp_size=manifest.topology.tp_size, vocab_pad_multiple=manifest.vocab_pad_multiple)
    return {
        "kind": "export",
        "source": str(weights.folder),
        "base": weights.base_facts,
        "adapter": None if merger is None else merger.adapter.name,
        "step": manifest.step,
        "group": weights.group(EMBEDDING, chosen),
        "parameter_digest": manifest.parameter_digest,
        "dtype": config["dtype"],
        "tokenizer": None if origin.tokenizer is None else str(origin.tokenizer),
        "stop_ids": list(origin.stop_ids),
        "origin_missing": origin.missing,
        "padding_rows_in_memory": padding_rows(shape, layout),
        **ledger.report(),
    }


def _write_small_files(origin: Origin, folder: Path, *, shape: ModelShape, dtype: str) -> dict[str, Any]:
    """Write tokenizer and configs; return config.json."""
    found: dict[str, int | None] = {}
    if origin.tokenizer is not None:
        found = write_tokenizer(origin.tokenizer, folder, vocab_size=shape.vocab_size)
    # BOS and padding are as the origin has them; a model without one has those of its tokenizer.
    token_ids = {} if origin.config is not None else found
    config = make_hf_config(shape, dtype=dtype, base=origin.config, token_ids=token_ids)
    config = with_stops(config, origin.stop_ids)
    write_json(folder / CONFIG, config)
    base = origin.generation_config
    write_json(folder / GENERATION_CONFIG, make_generation_config(config, base=base))
    return config


def _write_weights(
    weights: Weights,
    folder: Path,
    *,
    merger: Merger | None,
    dtype: torch.dtype,
    shard_bytes: int,
    progress: Progress,
) -> Ledger:
    tensors = hf_tensors(weights.shape)
    sources = {p.name: p.shape for p in iter_parameters(weights.shape)}
    if merger is not None:
        sources |= {name: weights.extra[name].shape for name in merger.adapter.names.values()}
    ledger = Ledger(sources=sources, targets={tensor.name: tensor.shape for tensor in tensors.values()})
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
            if merger is not None and merger.touches(tensor.name):
                data = merger.tensor(tensor, dtype=dtype, ledger=ledger)
            else:
                data = weights.hf_tensor(tensor, dtype=dtype, ledger=ledger)
            digest = hasher.submit(tensor_sha256, data)
            writer.write(tensor.name, data)
            ledger.digest_target(tensor.name, f"sha256:{digest.result()}")
            weights.release()
            progress.advance(outline.nbytes)
        writer.finish()
    for name in sources:
        ledger.digest_source(name, weights.digest(name, dtype))
    ledger.balance()
    return ledger
