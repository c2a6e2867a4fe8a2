"""What plugins add to a model: every parameter with its full logical name, from descriptors alone.

Names: ``decoder.layers.L.adapters.ADAPTER.PARAM``, ``heads.TASK.PARAM``, ``mixture.logits``, ``mixture.gate.PARAM``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llama_scale.spec.model import ModelShape
from llama_scale.spec.plugin_options import Use
from llama_scale.spec.plugins import ADAPTERS, TASKS

INITS = ("zeros", "ones", "normal", "kaiming_uniform")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z0-9_]+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """One parameter that a plugin adds, checked.

    Args:
        short_name: Name within its owner.
        layer: Number of the layer; None: on the last stage.
        shape: Logical shape.
        tp_dim: Dim that tensor parallelism cuts.
        init: One of INITS.
        std: Standard deviation of ``normal``.
        trainable: Whether training updates it.
        partial_gradient: See ``extensions.api.ExtraParameter``.
    """

    short_name: str
    layer: int | None
    shape: tuple[int, ...]
    tp_dim: int | None
    init: str
    std: float
    trainable: bool
    partial_gradient: bool


class AddedError(Exception):
    """Carry what a descriptor raised.

    Args:
        doing: What it was asked for.
        cause: What it raised; a ValueError says that the options do not fit the model.
        field: Path of the options' field that is at fault, if that is known.
    """

    def __init__(self, doing: str, cause: Exception, field: tuple[str, ...] = ()) -> None:
        super().__init__(f"{doing}: {cause}")
        self.doing = doing
        self.cause = cause
        self.field = field


def added_by(use: Use, shape: ModelShape, *, adapters: int) -> list[Added]:
    """Return what one plugin adds, layer by layer.

    Args:
        use: The plugin, with good options.
        shape: The model.
        adapters: Number of adapters that are mixed; a gate needs it.

    Raises:
        AddedError: The options do not fit the model, or the descriptor is wrong.
    """
    if use.group != ADAPTERS:
        arguments = (shape,) if use.group == TASKS else (shape, adapters)
        return list(_checked(_ask(use, *arguments), layer=None))
    try:
        layers = use.options.layer_numbers(shape.num_layers)  # type: ignore[union-attr]  # AdapterOptions has it
    except Exception as error:
        raise AddedError("naming its layers", error, ("layers",)) from error
    return [added for layer in layers for added in _checked(_ask(use, shape, layer), layer=layer)]


def _ask(use: Use, *arguments: Any) -> Sequence[Any]:
    try:
        return tuple(use.descriptor.parameters(use.options, *arguments))
    except Exception as error:
        raise AddedError("naming its parameters", error) from error


def _checked(parameters: Sequence[Any], *, layer: int | None) -> Iterator[Added]:
    names: set[str] = set()
    for parameter in parameters:
        fault = next(_faults(parameter, names), None)
        if fault is not None:
            raise AddedError("naming its parameters", TypeError(fault))
        names.add(parameter.name)
        yield Added(
            short_name=parameter.name,
            layer=layer,
            shape=tuple(parameter.shape),
            tp_dim=parameter.tp_dim,
            init=parameter.init,
            std=parameter.std,
            trainable=parameter.trainable,
            partial_gradient=parameter.partial_gradient,
        )


def _faults(parameter: Any, names: set[str]) -> Iterator[str]:
    """Yield what is wrong with the form of one parameter; a plugin's author has to mend it."""
    name, shape = getattr(parameter, "name", None), getattr(parameter, "shape", None)
    if not isinstance(name, str) or not isinstance(shape, tuple):
        yield f"{parameter!r} is no ExtraParameter"
        return
    if not _NAME.fullmatch(name):
        yield f"parameter name {name!r} is not made of words joined by dots"
    if name in names:
        yield f"two parameters are called {name!r}"
    if not shape or not all(isinstance(size, int) and size > 0 for size in shape):
        yield f"parameter {name!r} has shape {shape}; sizes are positive integers"
    dim = parameter.tp_dim
    if dim is not None and not 0 <= dim < len(shape):
        yield f"parameter {name!r} has tp_dim={dim}, and its shape {shape} has dims 0 to {len(shape) - 1}"
    if parameter.init not in INITS:
        yield f"parameter {name!r} has init={parameter.init!r}; use one of {', '.join(INITS)}"
    if parameter.init == "normal" and not (parameter.std > 0 and math.isfinite(parameter.std)):
        yield f"parameter {name!r} has init normal and std={parameter.std}; std has to be positive"
