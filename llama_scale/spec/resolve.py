"""Fill in what follows from the spec: the model's numbers, the third batch size, steps from tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llama_scale.errors import Problem
from llama_scale.spec.batch_math import solve_batch
from llama_scale.spec.model import HfModel, InlineModel, ModelShape, PresetModel
from llama_scale.spec.run import RunSpec
from llama_scale.spec.train import Train


@dataclass(slots=True)
class Resolution:
    """The sections that are whole, resolved as far as can be, and the problems that were met.

    ``view`` reads like a RunSpec; sections in ``broken`` must not be read from it.
    """

    view: RunSpec
    broken: set[str]
    problems: list[Problem] = field(default_factory=list)


def resolve(sections: Mapping[str, Any]) -> Resolution:
    """Resolve the sections that are whole; ``sections`` maps their names to their models."""
    values = dict(sections)
    broken = set(RunSpec.model_fields) - set(values)
    problems: list[Problem] = []
    if "model" in values:
        model, found = _resolve_model(values["model"])
        problems += found
        _put(values, broken, "model", model)
    if {"batch", "parallel"} <= values.keys():
        batch, found = solve_batch(values["batch"], dp_size=values["parallel"].data)
        problems += found
        _put(values, broken, "batch", batch)
    else:
        broken.add("batch")
    if {"train", "batch", "data"} <= values.keys() and not broken & {"train", "batch", "data"}:
        train: Train = values["train"]
        if train.steps is None and train.tokens is not None:
            per_step = values["batch"].global_ * values["data"].seq_length
            values["train"] = train.model_copy(update={"steps": -(-train.tokens // per_step), "tokens": None})
    return Resolution(view=RunSpec.model_construct(**values), broken=broken, problems=problems)


def _put(values: dict[str, Any], broken: set[str], name: str, value: object | None) -> None:
    if value is None:
        del values[name]
        broken.add(name)
    else:
        values[name] = value


def _resolve_model(model: PresetModel | HfModel | InlineModel) -> tuple[InlineModel | None, list[Problem]]:
    if isinstance(model, InlineModel):
        return model, []
    if isinstance(model, PresetModel):
        return _from_preset(model)
    return _from_hf(model)


def _from_preset(model: PresetModel) -> tuple[InlineModel | None, list[Problem]]:
    from llama_scale.spec.presets import PRESETS  # lazy: only specs that name a preset need the table

    preset = PRESETS[model.name]
    changes = {key: getattr(model, key) for key in ("vocab_size", "num_layers") if getattr(model, key) is not None}
    return _inline(preset.shape.model_copy(update=changes), model, name=model.name, init_std=preset.init_std), []


def _from_hf(model: HfModel) -> tuple[InlineModel | None, list[Problem]]:
    from llama_scale.spec.hf_config import HfConfigError, read_hf_config  # lazy: only for kind: hf

    try:
        config = read_hf_config(model.path)
    except HfConfigError as error:
        hint = "name the folder of an unquantized LlamaForCausalLM, as save_pretrained writes it"
        return None, [
            Problem(path=("model", "path"), message=fault, hint=hint, code="hf-config") for fault in error.faults
        ]
    return _inline(config.shape, model, name=_name_of(model.path), init_std=config.init_std), []


def _name_of(path: str) -> str:
    """Make a name of the folder's: characters that a name cannot hold become ``-``."""
    last = path.rstrip("/").rpartition("/")[2]
    name = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in last)[:64].lstrip("._-")
    return name or "llama"


def _inline(shape: ModelShape, model: PresetModel | HfModel, *, name: str, init_std: float) -> InlineModel:
    values = {key: getattr(shape, key) for key in ModelShape.model_fields}
    return InlineModel(
        kind="inline",
        name=name,
        init_std=model.init_std if "init_std" in model.model_fields_set else init_std,
        vocab_pad_multiple=model.vocab_pad_multiple,
        init_from=model.init_from,
        **values,
    )
