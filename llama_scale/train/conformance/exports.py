"""The suite's look at exports: transformers or PEFT loads the folder and gives the logits of the model that trained."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from llama_scale.train.conformance.adapter_ranks import PROBE
from llama_scale.train.conformance.tiny import Tiny, samples


def export_difference(checkpoint: Path, folder: Path, tiny: Tiny, expected: torch.Tensor, form: str) -> float:
    """Export a checkpoint with one adapter and return the largest difference of logits.

    Args:
        checkpoint: The checkpoint.
        folder: Room for what is written.
        tiny: The run.
        expected: Logits of the run's model.
        form: ``mixture`` (base, adapter and modelling file) or ``peft``.
    """
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "modules")}
    from llama_scale.convert.reference import native_model  # lazy: transformers reads these variables

    target = folder / form
    if form == "mixture":
        from transformers import AutoModelForCausalLM

        from llama_scale.convert.assemble import export_mixture

        export_mixture(checkpoint, target)
        # Just written here: the copies of the plugin's files run as they will elsewhere.
        model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32, trust_remote_code=True)
    else:
        from peft import PeftModel

        from llama_scale.convert.peft import export_peft
        from llama_scale.convert.weights import Weights

        export_peft(checkpoint, target)
        model = PeftModel.from_pretrained(native_model(Weights(checkpoint)), target)
    model.eval()
    with torch.no_grad():
        rows = [model(input_ids=row["tokens"], use_cache=False).logits for row in samples(tiny, step=PROBE)]
    return float((torch.cat(rows) - expected).abs().max())
