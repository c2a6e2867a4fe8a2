"""What a Hugging Face folder holds, against what its config.json asks for: names, shapes and element types."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from llama_scale.convert.hf_weights import HfWeights
from llama_scale.convert.mapping import HF_EMBEDDING, HF_HEAD, HfTensor, hf_tensors
from llama_scale.errors import ConvertError
from llama_scale.spec.model import ModelShape
from llama_scale.spec.nearby import some

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Formats of weights that native checkpoints and exports have."""

_BUFFER = re.compile(r"(model\.layers\.\d+\.self_attn|model)\.rotary_emb\.inv_freq")
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


def check_inventory(weights: HfWeights, shape: ModelShape) -> dict[str, str]:
    """Compare the folder's tensors with those the config asks for.

    Returns:
        Tensors that carry no weight of their own -> why they are left out.

    Raises:
        ConvertError: Tensors are missing, unknown, of another shape, or an output layer contradicts the config.
    """
    _check_size(weights, shape)
    wanted = hf_tensors(shape)
    held = set(weights.names)
    missing = [name for name in wanted if name not in held]
    if missing:
        hint = "the folder is incomplete"
        if missing == [HF_HEAD]:
            hint = "config.json says tie_word_embeddings=false; set it to true if the model uses its embedding twice"
        raise ConvertError(f"{weights.folder} has no tensor {_shown(missing)}; {hint}")
    ignored: dict[str, str] = {}
    unknown = []
    for name in weights.names:
        if name in wanted:
            continue
        if _BUFFER.fullmatch(name):
            ignored[name] = "buffer of older transformers, computed anew from rope_theta"
        elif name == HF_HEAD and shape.tie_word_embeddings:
            _check_tied(weights)
            ignored[name] = f"equal to {HF_EMBEDDING}, which config.json ties it to"
        else:
            unknown.append(name)
    if unknown:
        raise ConvertError(
            f"{weights.folder} has the tensor {_shown(unknown)}, which a LLaMA of this config.json does not have; "
            "convert the model without it, or correct config.json"
        )
    _check_shapes(weights, wanted)
    return ignored


def _check_size(weights: HfWeights, shape: ModelShape) -> None:
    """Refuse numbers that are far from the files before anything is made for each layer and each head of them."""
    stored = {match[1] for name in weights.names if (match := _LAYER.match(name))}
    if shape.num_layers > len(stored):
        raise ConvertError(
            f"{weights.folder}: config.json says num_hidden_layers={shape.num_layers}, the folder has tensors of "
            f"{len(stored)} layers; it is incomplete, or one of the two is of another model"
        )
    _check_shapes(weights, hf_tensors(shape.model_copy(update={"num_layers": 1})))


def _check_shapes(weights: HfWeights, wanted: Mapping[str, HfTensor]) -> None:
    held = set(weights.names)
    for name, tensor in wanted.items():
        if name in held and weights.shape(name) != tensor.shape:
            raise ConvertError(
                f"{weights.folder}: {name} has the shape {list(weights.shape(name))}, config.json asks for "
                f"{list(tensor.shape)}; one of the two is of another model"
            )


def _check_tied(weights: HfWeights) -> None:
    if weights.shape(HF_HEAD) != weights.shape(HF_EMBEDDING) or not torch.equal(
        weights.map(HF_HEAD), weights.map(HF_EMBEDDING)
    ):
        raise ConvertError(
            f"{weights.folder}: config.json says tie_word_embeddings=true, but {HF_HEAD} differs from {HF_EMBEDDING}; "
            "set it to false to keep both, or remove the tensor"
        )
    weights.release(HF_HEAD)
    weights.release(HF_EMBEDDING)


def _shown(names: list[str]) -> str:
    return some([repr(name) for name in names], most=4)


def choose_dtype(weights: HfWeights, shape: ModelShape, asked: str | None) -> torch.dtype:
    """Return the checkpoint's element type: the one asked for, or the files' own where that is possible.

    Raises:
        ConvertError: The files hold integers (a quantized model), or nothing was asked for and they hold fp16 or
            several types.
    """
    found = {weights.dtype(name) for name in hf_tensors(shape)}
    strange = {dtype for dtype in found if not dtype.is_floating_point}
    if strange:
        raise ConvertError(f"{weights.folder} holds {_dtypes(strange)}: a quantized model; convert the original one")
    if asked is not None:
        return DTYPES[asked]
    if len(found) > 1 or not found <= set(DTYPES.values()):
        raise ConvertError(
            f"{weights.folder} holds {_dtypes(found)}; choose --dtype fp32 (exact) or --dtype bf16 (rounds)"
        )
    return found.pop()


def _dtypes(dtypes: set[torch.dtype]) -> str:
    return " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
