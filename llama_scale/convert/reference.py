"""Models of transformers: of a folder, or of a checkpoint's weights without a folder between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from llama_scale.convert.hf_config import make_hf_config
from llama_scale.convert.mapping import hf_tensors
from llama_scale.convert.merge import Merger
from llama_scale.convert.weights import Weights
from llama_scale.errors import ConvertError


def load_model(folder: Path, *, dtype: torch.dtype, own_code: bool = False) -> Any:
    """Load a folder through transformers.

    Args:
        folder: The folder.
        dtype: Element type of its weights.
        own_code: Run the modelling file in it (one that an export here wrote).

    Raises:
        ConvertError: transformers cannot load it.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=own_code)
    except Exception as error:  # whatever a damaged folder makes the library raise
        raise ConvertError(f"transformers cannot load {folder}: {error}") from error


def native_model(weights: Weights, *, merger: Merger | None = None) -> Any:
    """Return transformers' LlamaForCausalLM of a checkpoint's base, fp32.

    Args:
        weights: The checkpoint.
        merger: An adapter to merge into it.
    """
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = make_hf_config(weights.shape, dtype="float32")
    state = {
        name: merger.tensor(tensor, dtype=torch.float32)
        if merger is not None and merger.touches(name)
        else weights.hf_tensor(tensor, dtype=torch.float32)
        for name, tensor in hf_tensors(weights.shape).items()
    }
    return LlamaForCausalLM.from_pretrained(None, config=LlamaConfig(**config), state_dict=state)
