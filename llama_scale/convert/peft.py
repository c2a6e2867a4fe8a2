"""Adapters as PEFT's folders: ``PeftModel.from_pretrained(base, FOLDER)`` gives the model that was trained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from llama_scale.convert.adapters import StoredAdapter, find_adapter
from llama_scale.convert.folders import REPORT, Proof, check_target, checkpoint_faults, new_folder, write_json
from llama_scale.convert.hf_weights import tensor_sha256
from llama_scale.convert.mapping import hf_tensors
from llama_scale.convert.origin import origin_of
from llama_scale.convert.tokenizer import write_tokenizer
from llama_scale.convert.weights import Weights
from llama_scale.errors import ConvertError
from llama_scale.extensions.peft import PeftFormat, module_path

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
PREFIX = "base_model.model."


def require_peft(adapter: StoredAdapter) -> PeftFormat:
    """Return how PEFT keeps an adapter.

    Raises:
        ConvertError: PEFT has no such kind.
    """
    if adapter.peft is None:
        raise ConvertError(
            f"adapter {adapter.name!r} is of kind {adapter.entry.kind!r}, which has no PEFT format; export it with "
            "--as mixture, which keeps it in a file of its own"
        )
    return adapter.peft


@checkpoint_faults()
def export_peft(
    checkpoint: Path,
    target: Path,
    *,
    adapter: str | None = None,
    base: Path | None = None,
    tokenizer: Path | None = None,
    proof: Proof | None = None,
) -> dict[str, Any]:
    """Write one adapter of a checkpoint as a PEFT folder, with the tokenizer that it was trained with.

    Args:
        checkpoint: A complete checkpoint of any layout.
        target: New folder; it appears when everything is written and proven.
        adapter: Which; None: the only one.
        base: Where the checkpoint's frozen base is now; None: where it was.
        tokenizer: See ``export_hf``.
        proof: Is called before the folder appears.

    Returns:
        What report.json holds.

    Raises:
        ConvertError: The checkpoint or its base is damaged, PEFT has no such kind, writing failed, or the proof did.
    """
    check_target(target)
    weights = Weights(checkpoint, base=base, verify="hashes")
    found = find_adapter(weights, adapter)
    require_peft(found)
    origin = origin_of(checkpoint, base=None if weights.base is None else weights.base.folder, tokenizer=tokenizer)
    with new_folder(target) as tmp:
        write_peft(found, tmp)
        if origin.tokenizer is not None:
            write_tokenizer(origin.tokenizer, tmp, vocab_size=weights.shape.vocab_size)
        report: dict[str, Any] = {
            "kind": "peft",
            "source": str(weights.folder),
            "base": weights.base_facts,
            "adapter": found.name,
            "step": weights.manifest.step,
            "tokenizer": None if origin.tokenizer is None else str(origin.tokenizer),
            "origin_missing": origin.missing,
            "tensors": {name: f"sha256:{tensor_sha256(t)}" for name, t in load_file(tmp / TENSORS).items()},
        }
        if proof is not None:
            report["verify"] = proof(tmp)
        write_json(tmp / REPORT, report)
    return report


def write_peft(adapter: StoredAdapter, folder: Path, *, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Write an adapter's PEFT folder, which names the base as the run's spec does.

    Args:
        adapter: An adapter of a kind that PEFT has.
        folder: Existing folder.
        dtype: Element type of the base that it will be put on.

    Returns:
        adapter_config.json.
    """
    form = require_peft(adapter)
    layers = adapter.layers if len(adapter.layers) < adapter.weights.shape.num_layers else None
    config = {
        "peft_type": form.peft_type,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.weights.base_name,
        "inference_mode": True,
        **form.settings(adapter.options, layers=layers),
    }
    tensors = dict(peft_tensors(adapter, form, dtype=dtype))
    save_file(tensors, str(folder / TENSORS), metadata={"format": "pt"})
    write_json(folder / CONFIG, config)
    return config


def peft_tensors(
    adapter: StoredAdapter, form: PeftFormat, *, dtype: torch.dtype = torch.float32
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of an adapter's PEFT file, for a base of an element type."""
    forms = {t.name: t for t in form.tensors}
    matrices = hf_tensors(adapter.weights.shape)
    for (layer, short), name in adapter.names.items():
        target, _, own = short.rpartition(".")
        tensor = adapter.weights.tensor(name)
        if forms[own].less_norm:
            matrix = matrices[f"{module_path(layer, target)}.weight"]
            tensor += adapter.weights.hf_tensor(matrix, dtype=dtype).float().norm(dim=1)
            adapter.weights.release()
        shape = form.stored_shape(target, own, tuple(tensor.shape))
        yield f"{PREFIX}{module_path(layer, target)}.{forms[own].peft}", tensor.view(shape)
