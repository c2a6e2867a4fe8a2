"""Fill in what follows from the spec: the model's numbers, the third batch size, steps from tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama_scale.errors import Problem
from llama_scale.spec.batch_math import solve_batch
from llama_scale.spec.start import settle_start
from llama_scale.spec.view import Absent, View

if TYPE_CHECKING:
    from llama_scale.spec.hf_config import HfConfig
    from llama_scale.spec.model import HfModel, InlineModel, ModelShape, PresetModel

SectionResolver = Callable[[Any], tuple[Any, list[Problem]]]
HostsReader = Callable[[str], str]

PRESET_CHANGES = ("vocab_size", "num_layers")
"""Fields of a preset model that replace numbers of the table."""
START_FIELDS = ("init_from", "base_name")
"""Fields of every kind of model that say where its weights come from."""


@dataclass(slots=True, kw_only=True)
class Resolution:
    """The sections that are whole, resolved as far as can be; those in ``broken`` have problems and are absent."""

    sections: dict[str, Any]
    broken: set[str]
    problems: list[Problem]


def resolve(
    sections: Mapping[str, Any],
    names: Collection[str],
    *,
    resolve_model: SectionResolver,
    read_hostfile: HostsReader,
    written: Callable[[str], str | None] = lambda key: None,
) -> Resolution:
    """Resolve the sections that are whole.

    Args:
        sections: Section name -> its model (or a view with the same fields and ``model_copy``).
        names: All sections that a spec has.
        resolve_model: Turns the model section into one that gives the model's numbers, or says why it cannot.
        read_hostfile: Returns the text of a launcher's hostfile; raises OSError or UnicodeDecodeError.
        written: Returns a path of the section ``model`` as its user wrote it; None where that is not known.
    """
    values = {**sections, **settle_start(sections, written=written)}
    broken = set(names) - set(values)
    problems: list[Problem] = []
    steps: tuple[tuple[str, tuple[str, ...], SectionResolver], ...] = (
        ("model", (), resolve_model),
        ("batch", ("parallel",), lambda batch: _resolve_batch(batch, values["parallel"])),
        ("train", ("batch", "data"), lambda train: (_resolve_train(train, values["batch"], values["data"]), [])),
        ("launcher", ("cluster",), lambda launcher: _resolve_launcher(launcher, values["cluster"], read_hostfile)),
    )
    for name, needs, step in steps:
        if name not in values:
            continue
        resolved, found = None, list[Problem]()
        if values.keys() >= set(needs):
            with suppress(Absent):  # a number that it follows from is faulty, which is reported already
                resolved, found = step(values[name])
        problems += found
        if resolved is None:
            del values[name]
            broken.add(name)
        else:
            values[name] = resolved
    return Resolution(sections=values, broken=broken, problems=problems)


def _resolve_batch(batch: Any, parallel: Any) -> tuple[Any, list[Problem]]:
    sizes, problems = solve_batch(batch, dp_size=parallel.data)
    if sizes is None:
        return None, problems
    return batch.model_copy(update=dict(zip(("global_", "micro", "accumulation"), sizes, strict=True))), []


def _resolve_train(train: Any, batch: Any, data: Any) -> Any:
    if train.tokens is None or train.steps is not None or train.epochs is not None:
        return train
    per_step = batch.global_ * data.seq_length
    return train.model_copy(update={"steps": -(-train.tokens // per_step), "tokens": None})


def _resolve_launcher(launcher: Any, cluster: Any, read_hostfile: HostsReader) -> tuple[Any, list[Problem]]:
    if getattr(launcher, "hostfile", None) is None:
        return launcher, []
    return _resolve_hosts(launcher, devices=cluster.devices_per_node, read_hostfile=read_hostfile)


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


def resolve_model(model: PresetModel | HfModel | InlineModel | View) -> tuple[InlineModel | View | None, list[Problem]]:
    """Return the model by its numbers: presets looked up, a Hugging Face config read."""
    if isinstance(model, View):
        return resolve_view(model)
    if model.kind == "inline":
        return model, []
    return (_from_preset(model), []) if model.kind == "preset" else _from_hf(model)


def resolve_view(model: View) -> tuple[View | None, list[Problem]]:
    """Return a view of the numbers of a model that is a view; those that its faults leave unknown are absent.

    Raises:
        Absent: which model it is cannot be told.
    """
    if model.kind == "inline":
        return model, []
    if model.kind == "hf":
        config, problems = _read_folder(model.path)
        if config is None:
            return None, problems
        return View(
            kind="inline", name=name_of(model.path), **dict(config.shape), **_start_of(model), absent=START_FIELDS
        ), []
    from llama_scale.spec.presets import PRESETS  # lazy: only specs that name a preset need the table

    numbers = PRESETS[model.name].numbers()
    if numbers["rope_scaling"]:
        numbers["rope_scaling"] = View(**numbers["rope_scaling"])
    for key in PRESET_CHANGES:
        if key not in vars(model):
            del numbers[key]
        elif getattr(model, key) is not None:
            numbers[key] = getattr(model, key)
    return View(
        kind="inline", name=model.name, **numbers, **_start_of(model), absent=(*PRESET_CHANGES, *START_FIELDS)
    ), []


def _start_of(model: View) -> dict[str, Any]:
    """Return what is known of where the weights come from."""
    return {key: value for key, value in vars(model).items() if key in START_FIELDS}


def _from_preset(model: PresetModel) -> InlineModel:
    from llama_scale.spec.presets import PRESETS  # lazy: only specs that name a preset need the table

    preset = PRESETS[model.name]
    changes = {key: getattr(model, key) for key in PRESET_CHANGES if getattr(model, key) is not None}
    return _inline(preset.shape.model_copy(update=changes), model, name=model.name, init_std=preset.init_std)


def _from_hf(model: HfModel) -> tuple[InlineModel | None, list[Problem]]:
    config, problems = _read_folder(model.path)
    if config is None:
        return None, problems
    return _inline(config.shape, model, name=name_of(model.path), init_std=config.init_std), []


def _read_folder(path: str) -> tuple[HfConfig | None, list[Problem]]:
    from llama_scale.spec.hf_config import HfConfigError, read_hf_config  # lazy: only for kind: hf

    try:
        return read_hf_config(path), []
    except HfConfigError as error:
        hint = "name the folder of an unquantized LlamaForCausalLM, as save_pretrained writes it"
        return None, [
            Problem(path=("model", "path"), message=fault, hint=hint, code="hf-config") for fault in error.faults
        ]


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
        base_name=model.base_name,
        **values,
    )
