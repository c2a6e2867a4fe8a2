"""Models of transformers: of a folder, or of a checkpoint's weights without a folder between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from llama_scale.convert.folders import read_json
from llama_scale.convert.hf_config import CONFIG, make_hf_config
from llama_scale.convert.hf_weights import refuse_pickled
from llama_scale.convert.mapping import hf_tensors
from llama_scale.convert.merge import Merger
from llama_scale.convert.weights import Weights
from llama_scale.errors import ConvertError


def brings_code(folder: Path) -> bool:
    """Tell whether transformers would run Python files of a folder to load its model."""
    return bool((read_json(folder / CONFIG) or {}).get("auto_map"))


def load_model(folder: Path, *, dtype: torch.dtype | str, own_code: bool = False) -> Any:
    """Load a folder through transformers.

    Args:
        folder: The folder.
        dtype: Element type of its weights; ``auto``: that of the files.
        own_code: Run the modelling file in it: an export here wrote it, or the user has agreed.

    Raises:
        ConvertError: Its weights are pickled, or transformers cannot load it.
    """
    refuse_pickled(folder)
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, trust_remote_code=own_code, use_safetensors=True
        )
    except Exception as error:  # whatever a damaged folder makes the library raise
        raise ConvertError(f"transformers cannot load {folder}: {' '.join(str(error).split())}") from error


def load_text_tokenizer(folder: Path, *, own_code: bool = False) -> Any:
    """Return a folder's tokenizer as transformers loads it.

    Args:
        folder: The folder.
        own_code: See ``load_model``; transformers looks at the model's config, which may be code, and would ask.

    Raises:
        ConvertError: There is none, or it is damaged.
    """
    require_text_tokenizer(folder)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=own_code)
    except Exception as error:  # whatever a damaged folder makes the library raise
        raise ConvertError(f"transformers cannot load the tokenizer of {folder}: {error}") from error


def require_text_tokenizer(folder: Path) -> None:
    """Refuse a folder without a tokenizer.

    Raises:
        ConvertError: There is none.
    """
    if not has_text_tokenizer(folder):
        raise ConvertError(
            f"{folder} has no tokenizer; export it with `--tokenizer PATH`, or copy tokenizer.json into the folder"
        )


def has_text_tokenizer(folder: Path) -> bool:
    """Tell whether a folder has a file that transformers makes a tokenizer of."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


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
