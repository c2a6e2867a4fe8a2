"""Task heads beside an exported model: ``heads/TASK.safetensors``, which `eval` and the tasks read."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from llama_scale.convert.weights import Weights
from llama_scale.layout.parameters import head_parameter

HEADS = "heads"


def write_heads(weights: Weights, folder: Path) -> dict[str, str]:
    """Write the parameters of each task that has any.

    Returns:
        Task -> its file within the folder.
    """
    record = weights.manifest.extensions
    written: dict[str, str] = {}
    for task in () if record is None else record.tasks:
        prefix = head_parameter(task.name, "")
        tensors: dict[str, torch.Tensor] = {
            name.removeprefix(prefix): weights.tensor(name) for name in weights.extra if name.startswith(prefix)
        }
        if tensors:
            (folder / HEADS).mkdir(exist_ok=True)
            written[task.name] = f"{HEADS}/{task.name}.safetensors"
            save_file(tensors, str(folder / written[task.name]), metadata={"format": "pt"})
    return written
