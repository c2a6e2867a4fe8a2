"""Models of transformers: of a folder, or of a checkpoint's weights without a folder between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from llama_scale.convert.folders import has_tokenizer, read_json
from llama_scale.convert.foreign_code import CONSENT, foreign_code, mixture_kinds
from llama_scale.convert.hf_config import CONFIG, make_hf_config
from llama_scale.convert.hf_weights import refuse_pickled
from llama_scale.convert.mapping import hf_tensors
from llama_scale.convert.merge import Merger
from llama_scale.convert.modelling import MODEL_TYPE
from llama_scale.convert.weights import Weights
from llama_scale.errors import ConvertError
from llama_scale.extensions import discover

_ADAPTER = "adapter_config.json"


def load_model(folder: Path, *, dtype: torch.dtype | str, trust_code: bool = False) -> Any:
    """Load a folder through transformers.

    Args:
        folder: The folder: a plain model, or a mixture, which becomes a model of the classes installed here.
        dtype: Element type of its weights; ``auto``: that of the files.
        trust_code: Run Python code of the folder that no export writes.

    Raises:
        ConvertError: Its weights are pickled, it brings code that may not run, or transformers cannot load it.
    """
    foreign = foreign_code(folder)
    if foreign is not None and not trust_code:
        raise ConvertError(f"{folder} brings code of its own: {foreign}; {CONSENT}")
    if foreign is None and _is_mixture(folder):
        return _loaded(_mixture_class(folder), folder, dtype=dtype)
    from transformers import AutoModelForCausalLM

    return _loaded(AutoModelForCausalLM, folder, dtype=dtype, trust_remote_code=foreign is not None)


def load_llama(folder: Path, *, dtype: torch.dtype) -> Any:
    """Load a folder's weights as transformers' own LLaMA, whatever code it brings.

    Raises:
        ConvertError: Its weights are pickled, or transformers cannot load it.
    """
    from transformers import LlamaForCausalLM

    return _loaded(LlamaForCausalLM, folder, dtype=dtype)


def _loaded(kind: Any, folder: Path, **settings: Any) -> Any:
    refuse_pickled(folder)
    if (folder / _ADAPTER).is_file():
        raise ConvertError(
            f"{folder} holds a model and an adapter ({_ADAPTER}), which transformers would add to the model unasked; "
            "move the adapter's files into a folder of their own"
        )
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        # Named here, because a config.json may name attention kernels that are downloaded and run.
        return kind.from_pretrained(folder, use_safetensors=True, attn_implementation="sdpa", **settings)
    except Exception as error:  # whatever a damaged folder makes the library raise
        raise ConvertError(f"transformers cannot load {folder}: {' '.join(str(error).split())}") from error


def _is_mixture(folder: Path) -> bool:
    return (read_json(folder / CONFIG) or {}).get("model_type") == MODEL_TYPE


def _mixture_class(folder: Path) -> Any:
    """Return the installed class of mixtures, which knows the folder's kinds of adapters and gates."""
    from llama_scale.convert.hf_mixture import modeling_llama_scale as modelling

    adapters, gates = mixture_kinds((read_json(folder / CONFIG) or {}).get("llama_scale"))
    modelling.ADAPTERS |= {kind: discover.implementation(discover.adapter(kind)) for kind in adapters}
    modelling.GATES |= {kind: discover.implementation(discover.gate(kind)) for kind in gates}
    return modelling.LlamaScaleForCausalLM


def load_text_tokenizer(folder: Path, *, trust_code: bool = False) -> Any:
    """Return a folder's tokenizer as transformers loads it.

    Args:
        folder: The folder.
        trust_code: See ``load_model``.

    Raises:
        ConvertError: There is none, it is damaged, or the folder brings code that may not run.
    """
    require_text_tokenizer(folder)
    foreign = foreign_code(folder)
    if foreign is not None and not trust_code:
        raise ConvertError(f"{folder} brings code of its own: {foreign}; {CONSENT}")
    from transformers import AutoTokenizer

    settings: dict[str, Any] = {"trust_remote_code": foreign is not None}
    if foreign is None and _is_mixture(folder):  # a type of model that transformers does not know
        settings["config"] = _mixture_class(folder).config_class.from_pretrained(folder)
    try:
        return AutoTokenizer.from_pretrained(folder, **settings)
    except Exception as error:  # whatever a damaged folder makes the library raise
        raise ConvertError(f"transformers cannot load the tokenizer of {folder}: {error}") from error


def require_text_tokenizer(folder: Path) -> None:
    """Refuse a folder without a tokenizer.

    Raises:
        ConvertError: There is none.
    """
    if not has_tokenizer(folder):
        raise ConvertError(
            f"{folder} has no tokenizer; export it with `--tokenizer PATH`, or copy tokenizer.json into the folder"
        )


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
