"""Fill in what follows from the spec: the model's numbers, the third batch size, steps from tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama_scale.errors import Problem
from llama_scale.spec.batch_math import solve_batch

if TYPE_CHECKING:
    from llama_scale.spec.model import HfModel, InlineModel, ModelShape, PresetModel

ModelResolver = Callable[[Any], tuple[Any, list[Problem]]]
HostsReader = Callable[[str], str]

PRESET_CHANGES = ("vocab_size", "num_layers")
"""Fields of a preset model that replace numbers of the table."""


@dataclass(slots=True, kw_only=True)
class Resolution:
    """The sections that are whole, resolved as far as can be; those in ``broken`` have problems and are absent."""

    sections: dict[str, Any]
    broken: set[str]
    problems: list[Problem]


def resolve(
    sections: Mapping[str, Any], names: Collection[str], *, resolve_model: ModelResolver, read_hostfile: HostsReader
) -> Resolution:
    """Resolve the sections that are whole.

    Args:
        sections: Section name -> its model (or a view with the same fields and ``model_copy``).
        names: All sections that a spec has.
        resolve_model: Turns the model section into one that gives the model's numbers, or says why it cannot.
        read_hostfile: Returns the text of a launcher's hostfile; raises OSError or UnicodeDecodeError.
    """
    values = dict(sections)
    broken = set(names) - set(values)
    problems: list[Problem] = []
    if "model" in values:
        model, found = resolve_model(values["model"])
        problems += found
        _put(values, broken, "model", model)
    if {"batch", "parallel"} <= values.keys():
        sizes, found = solve_batch(values["batch"], dp_size=values["parallel"].data)
        problems += found
        keys = ("global_", "micro", "accumulation")
        update = dict(zip(keys, sizes, strict=True)) if sizes else {}
        _put(values, broken, "batch", values["batch"].model_copy(update=update) if sizes else None)
    else:
        values.pop("batch", None)
        broken.add("batch")
    if {"train", "batch", "data"} <= values.keys():
        train = values["train"]
        if train.steps is None and train.tokens is not None:
            per_step = values["batch"].global_ * values["data"].seq_length
            values["train"] = train.model_copy(update={"steps": -(-train.tokens // per_step), "tokens": None})
    if {"launcher", "cluster"} <= values.keys() and getattr(values["launcher"], "hostfile", None) is not None:
        devices = values["cluster"].devices_per_node
        launcher, found = _resolve_hosts(values["launcher"], devices=devices, read_hostfile=read_hostfile)
        problems += found
        _put(values, broken, "launcher", launcher)
    return Resolution(sections=values, broken=broken, problems=problems)


def _resolve_hosts(launcher: Any, *, devices: int, read_hostfile: HostsReader) -> tuple[Any, list[Problem]]:
    """Return the launcher with the hosts of its hostfile in place of it."""
    from llama_scale.spec.hostfile import HostfileError, parse_hostfile  # lazy: only specs that name a hostfile

    path = launcher.hostfile
    if launcher.hosts:
        return None, [_hostfile_problem(f"both launcher.hosts and the hostfile {path} are given", hint="keep one")]
    try:
        hosts = parse_hostfile(read_hostfile(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        return None, [_hostfile_problem(f"{path} cannot be read: {reason}", hint="name a file of lines NAME slots=N")]
    except HostfileError as error:
        hint = "write one host a line: NAME slots=N"
        return None, [_hostfile_problem(f"{path}: {fault}", hint=hint) for fault in error.faults]
    problems = [
        _hostfile_problem(
            f"{path}: {host.name} has slots={host.slots}, and cluster.devices_per_node={devices}",
            hint=f"set its slots to {devices} or more, or devices_per_node to at most {host.slots}",
        )
        for host in hosts
        if host.slots < devices
    ]
    if problems:
        return None, problems
    return launcher.model_copy(update={"hosts": tuple(host.name for host in hosts), "hostfile": None}), []


def _hostfile_problem(message: str, *, hint: str) -> Problem:
    return Problem(path=("launcher", "hostfile"), message=message, hint=hint, code="hostfile")


def _put(values: dict[str, Any], broken: set[str], name: str, value: object | None) -> None:
    if value is None:
        del values[name]
        broken.add(name)
    else:
        values[name] = value


def resolve_model(model: PresetModel | HfModel | InlineModel) -> tuple[InlineModel | None, list[Problem]]:
    """Return the model by its numbers: presets looked up, a Hugging Face config read."""
    if model.kind == "inline":
        return model, []
    return (_from_preset(model), []) if model.kind == "preset" else _from_hf(model)


def _from_preset(model: PresetModel) -> InlineModel:
    from llama_scale.spec.presets import PRESETS  # lazy: only specs that name a preset need the table

    preset = PRESETS[model.name]
    changes = {key: getattr(model, key) for key in PRESET_CHANGES if getattr(model, key) is not None}
    return _inline(preset.shape.model_copy(update=changes), model, name=model.name, init_std=preset.init_std)


def _from_hf(model: HfModel) -> tuple[InlineModel | None, list[Problem]]:
    from llama_scale.spec.hf_config import HfConfigError, read_hf_config  # lazy: only for kind: hf

    try:
        config = read_hf_config(model.path)
    except HfConfigError as error:
        hint = "name the folder of an unquantized LlamaForCausalLM, as save_pretrained writes it"
        return None, [
            Problem(path=("model", "path"), message=fault, hint=hint, code="hf-config") for fault in error.faults
        ]
    return _inline(config.shape, model, name=name_of(model.path), init_std=config.init_std), []


def name_of(path: str) -> str:
    """Make a name of the folder's: characters that a name cannot hold become ``-``."""
    last = path.rstrip("/").rpartition("/")[2]
    name = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in last)[:64].lstrip("._-")
    return name or "llama"


def _inline(shape: ModelShape, model: PresetModel | HfModel, *, name: str, init_std: float) -> InlineModel:
    from llama_scale.spec.model import InlineModel, ModelShape  # lazy: keeps pydantic out of `quick`

    values = {key: getattr(shape, key) for key in ModelShape.model_fields}
    return InlineModel(
        kind="inline",
        name=name,
        init_std=model.init_std if "init_std" in model.model_fields_set else init_std,
        vocab_pad_multiple=model.vocab_pad_multiple,
        init_from=model.init_from,
        **values,
    )
