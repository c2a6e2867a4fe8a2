"""The whole model of a checkpoint as one folder that transformers loads: base, adapters, task heads and mixture.

FOLDER/config.json, model.safetensors      the base, as of any LLaMA
FOLDER/adapters/NAME/                      PEFT's folder, or adapter.safetensors where PEFT has no such kind
FOLDER/mixture.safetensors                 prior or gate
FOLDER/heads/TASK.safetensors              heads of tasks that have one
FOLDER/modeling_llama_scale.py, ...        what ``trust_remote_code=True`` runs; llama-scale is not needed
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from llama_scale.convert.adapters import StoredAdapter, plain_options, stored_adapters
from llama_scale.convert.export_hf import export_hf, write_model
from llama_scale.convert.folders import (
    REPORT,
    Progress,
    Proof,
    check_target,
    checkpoint_faults,
    new_folder,
    read_json,
    write_json,
)
from llama_scale.convert.heads import write_heads
from llama_scale.convert.hf_config import CONFIG
from llama_scale.convert.modelling import AUTO_MAP, MODEL_TYPE, write_modelling
from llama_scale.convert.peft import TENSORS, peft_tensors, write_peft
from llama_scale.convert.weights import Weights
from llama_scale.errors import ConvertError
from llama_scale.extensions import discover
from llama_scale.spec.adapters import mixed_adapters
from llama_scale.spec.plugin_options import DEFAULT_GATE

MIXTURE = "mixture.safetensors"


@checkpoint_faults()
def assemble(checkpoint: Path, out: Path, *, base: Path | None = None) -> dict[str, Any]:
    """Write a checkpoint's model as one folder, unproven: a plain LLaMA, or the mixture where there are adapters.

    Args:
        checkpoint: A complete checkpoint of any layout.
        out: New folder.
        base: Where the checkpoint's frozen base is now; None: where it was.

    Returns:
        What report.json holds.

    Raises:
        ConvertError: See ``export_hf``.
    """
    adapters = stored_adapters(Weights(checkpoint, base=base))
    return (export_mixture if adapters else export_hf)(checkpoint, out, base=base)


@checkpoint_faults()
def export_mixture(
    checkpoint: Path,
    target: Path,
    *,
    base: Path | None = None,
    dtype: str | None = None,
    shard_bytes: int = 5_000_000_000,
    tokenizer: Path | None = None,
    proof: Proof | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write base, adapters, heads and mixture as a folder of ``trust_remote_code``.

    Args:
        checkpoint: A complete checkpoint with adapters.
        target: New folder; it appears when everything is written and proven.
        base: Where the checkpoint's frozen base is now; None: where it was.
        dtype: See ``export_hf``; of the base, adapters stay fp32.
        shard_bytes: See ``export_hf``.
        tokenizer: See ``export_hf``.
        proof: Is called before the folder appears.
        progress: Is told of the bytes written.

    Returns:
        What report.json holds.

    Raises:
        ConvertError: See ``export_hf``; or a plugin's implementation cannot be copied.
    """
    check_target(target)
    weights = Weights(checkpoint, base=base, verify="hashes")
    adapters = stored_adapters(weights)
    if not adapters:
        raise ConvertError(f"checkpoint {checkpoint} has no adapters, so it is no mixture; export it with --as hf")
    with new_folder(target) as tmp:
        report = write_model(weights, tmp, dtype=dtype, shard_bytes=shard_bytes, tokenizer=tokenizer, progress=progress)
        report |= _write_extensions(weights, adapters, tmp)
        if proof is not None:
            report["verify"] = proof(tmp)
        write_json(tmp / REPORT, report)
    return report


def _write_extensions(weights: Weights, adapters: tuple[StoredAdapter, ...], folder: Path) -> dict[str, Any]:
    """Write everything but the base, and tell config.json of it."""
    record = weights.manifest.extensions
    assert record is not None, "adapters are known from it"
    heads = write_heads(weights, folder)
    mixture, gates = _write_mixture(weights, folder)
    config = read_json(folder / CONFIG) or {}
    dtype = getattr(torch, config["dtype"])
    facts = {
        "seed": record.seed,
        "base": weights.base_facts,
        "adapters": [_write_adapter(adapter, folder, dtype=dtype) for adapter in adapters],
        "mixture": mixture,
        "tasks": [task.model_dump(mode="json") | {"head": heads.get(task.name)} for task in record.tasks],
    }
    code = write_modelling(folder, adapters={a.entry.kind: a.descriptor.implementation for a in adapters}, gates=gates)
    config |= {
        "model_type": MODEL_TYPE,
        "architectures": [AUTO_MAP["AutoModelForCausalLM"].rpartition(".")[2]],
        "auto_map": AUTO_MAP,
        "llama_scale": facts,
    }
    write_json(folder / CONFIG, config)
    return {"adapters": {a.name: a.entry.kind for a in adapters}, "mixture": mixture, "heads": heads, "code": code}


def _write_adapter(adapter: StoredAdapter, folder: Path, *, dtype: torch.dtype) -> dict[str, Any]:
    """Write an adapter's folder and return its entry of config.json."""
    place = f"adapters/{adapter.name}"
    (folder / place).mkdir(parents=True)
    entry = {
        "name": adapter.name,
        "kind": adapter.entry.kind,
        "task": adapter.entry.task,
        "options": plain_options(adapter.options),
        "layers": list(adapter.layers),
    }
    form = adapter.peft
    if form is not None:
        write_peft(adapter, folder / place, dtype=dtype)
        forms = [{"peft": t.peft, "name": t.name, "vector": t.vector, "less_norm": t.less_norm} for t in form.tensors]
        return entry | {"file": f"{place}/{TENSORS}", "tensors": forms}
    save_file(
        adapter_file(adapter, dtype=dtype), str(folder / place / "adapter.safetensors"), metadata={"format": "pt"}
    )
    return entry | {"file": f"{place}/adapter.safetensors", "tensors": []}


def adapter_file(adapter: StoredAdapter, *, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the tensors of an adapter's file in a mixture's folder whose base has an element type."""
    if adapter.peft is not None:
        return dict(peft_tensors(adapter, adapter.peft, dtype=dtype))
    return {f"layers.{layer}.{short}": tensor for (layer, short), tensor in adapter.tensors().items()}


def mixture_file(weights: Weights) -> dict[str, torch.Tensor]:
    """Return the tensors of prior or gate; none without a mixture."""
    names = [name for name, parameter in weights.extra.items() if parameter.owner == "mixture"]
    return {name.removeprefix("mixture.").removeprefix("gate."): weights.tensor(name) for name in names}


def _write_mixture(weights: Weights, folder: Path) -> tuple[dict[str, Any] | None, dict[str, str]]:
    """Write prior or gate; return the entry of config.json and gate -> implementation."""
    record = weights.manifest.extensions
    if record is None or record.mixture is None:
        return None, {}
    save_file(mixture_file(weights), str(folder / MIXTURE), metadata={"format": "pt"})
    entry: dict[str, Any] = {
        "weights": record.mixture.weights,
        "adapters": list(mixed_adapters(record.adapters, record.mixture)),
        "file": MIXTURE,
    }
    if record.mixture.weights != "gate":
        return entry, {}
    kind = record.mixture.gate or DEFAULT_GATE
    descriptor = discover.gate(kind)
    options = descriptor.options.model_validate(record.mixture.gate_options)
    entry |= {"gate": kind, "gate_options": plain_options(options)}
    return entry, {kind: descriptor.implementation}
