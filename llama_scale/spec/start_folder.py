"""Look into the Hugging Face folder that a run's weights come from, without reading its weights.

A folder that is not there yet, or one in a job's own image, is no fault of the spec; a launch looks again.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from llama_scale.errors import Problem

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_MAX_INDEX_BYTES = 64 * 1024 * 1024

TENSOR_FIELDS = frozenset(
    {
        "hidden_size",
        "ffn_hidden_size",
        "num_layers",
        "num_heads",
        "num_kv_heads",
        "head_dim",
        "vocab_size",
        "tie_word_embeddings",
    }
)
"""Numbers of a model that decide which tensors it has and their shapes."""
_FUNCTION_FIELDS = TENSOR_FIELDS | {"rope_theta", "rope_scaling", "rms_norm_eps"}
"""Numbers that decide what a model computes; the context length is a promise only."""


class FolderFault(Exception):
    """Say why a folder's weights cannot be used."""


def is_hf_folder(folder: Path) -> bool:
    """Tell whether a folder is a Hugging Face model's; a checkpoint of ours has no config.json of its own."""
    return (folder / "config.json").is_file()


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold a Hugging Face folder's weights: one, or the shards that its index names.

    Raises:
        FolderFault: There are none, a shard is missing, or the index is damaged.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    index = folder / INDEX
    if not index.is_file():
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        what = f"only pickled weights ({pickled[0]}), which are not read" if pickled else "no weights"
        raise FolderFault(f"{folder} holds {what}: neither {SINGLE} nor {INDEX}")
    try:
        with index.open("rb") as stream:
            raw = stream.read(_MAX_INDEX_BYTES + 1)
        names = sorted(set(json.loads(raw)["weight_map"].values())) if len(raw) <= _MAX_INDEX_BYTES else None
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        names = None
    if not names or not all(isinstance(name, str) for name in names):
        raise FolderFault(f"{index} is damaged: it is no index of weight files")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FolderFault(
            f"{folder} holds {len(names) - len(missing)} of {len(names)} weight files; {missing[0]} is missing"
        )
    return [folder / name for name in names]


def check_start(model: Any, *, key: str) -> list[Problem]:
    """Return the problems of the folder that the weights come from, if it is a Hugging Face folder that is here.

    Args:
        model: The resolved section ``model``.
        key: The key of the section that names the folder: ``path`` or ``init_from``.
    """
    folder = Path(model.init_from)
    if not is_hf_folder(folder):
        return []
    problems = []
    try:
        weight_files(folder)
    except FolderFault as error:
        hint = "name the whole folder, as save_pretrained writes it, or start from the seed: train: {from: scratch}"
        problems.append(Problem(path=("model", key), message=str(error), hint=hint, code="no-weights"))
    if key == "init_from":
        problems += _number_problems(model, folder)
    return problems


def _number_problems(model: Any, folder: Path) -> list[Problem]:
    from llama_scale.spec.hf_config import HfConfigError, read_hf_config  # lazy: with pydantic's models

    try:
        theirs = read_hf_config(folder).shape
    except HfConfigError as error:
        hint = "name the folder of an unquantized LlamaForCausalLM, as save_pretrained writes it"
        return [
            Problem(path=("model", "init_from"), message=fault, hint=hint, code="hf-config") for fault in error.faults
        ]
    return [
        Problem(
            path=("model", "init_from"),
            message=f"config.json of {folder} says {name}={_shown(getattr(theirs, name))}, and the model has "
            f"{_shown(getattr(model, name))}",
            hint="use model: {kind: hf, path: FOLDER}, which takes the folder's numbers",
            code="folder-numbers",
        )
        for name in sorted(_FUNCTION_FIELDS)
        if not _equal(getattr(theirs, name), getattr(model, name))
    ]


def _equal(theirs: Any, ours: Any) -> bool:
    """Compare two numbers of a model; some tools write them with the digits of fp32."""
    if isinstance(theirs, float) and isinstance(ours, float):
        return math.isclose(theirs, ours, rel_tol=1e-6)
    return bool(theirs == ours)


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
