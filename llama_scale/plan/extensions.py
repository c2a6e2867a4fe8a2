"""What adapters, task heads and the mixture add to the parameter table, from the plugins' descriptors alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, cast

from llama_scale.errors import Problem, SpecError
from llama_scale.layout.parameters import Init, Parameter, adapter_parameter, head_parameter
from llama_scale.spec.adapters import Adapter, Mixture, Task, mixed_adapters
from llama_scale.spec.model import ModelShape

MIXTURE_LOGITS = "mixture.logits"
"""One scalar per adapter; p(a_i) is their softmax."""


class HasExtensions(Protocol):
    """A spec, or what a manifest keeps of one."""

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """Section adapters."""
        ...

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Section tasks."""
        ...

    @property
    def mixture(self) -> Mixture | None:
        """Section mixture."""
        ...


def extra_parameters(spec: HasExtensions, shape: ModelShape) -> tuple[Parameter, ...]:
    """Return what a spec's plugins add: adapters layer by layer, then task heads, then the mixture.

    Raises:
        SpecError: A plugin is missing or broken, or its options do not fit the model.
    """
    if not (spec.adapters or spec.tasks or spec.mixture):
        return ()
    return tuple(_parameters(spec, shape))


def _parameters(spec: HasExtensions, shape: ModelShape) -> Iterator[Parameter]:
    # lazy: a worker that reads plan.json, and specs without plugins, need neither
    from llama_scale.spec.added import Added, AddedError, added_by
    from llama_scale.spec.plugin_options import fill_options
    from llama_scale.spec.plugins import ADAPTERS, GATES

    filled = fill_options({"adapters": spec.adapters, "tasks": spec.tasks, "mixture": spec.mixture})
    if filled.problems:
        raise SpecError(filled.problems)

    def parameter(added: Added, name: str, owner: str) -> Parameter:
        return Parameter(
            name=name,
            shape=added.shape,
            tp_dim=added.tp_dim,
            place="head" if added.layer is None else "layer",
            layer=added.layer,
            init=cast("Init", added.init),
            std=added.std if added.init == "normal" else None,
            owner=owner,
            trainable=added.trainable,
            partial_gradient=added.partial_gradient,
        )

    mixed = 0 if spec.mixture is None else len(mixed_adapters(spec.adapters, spec.mixture))
    if spec.mixture is not None and spec.mixture.weights != "gate":
        yield _logits(mixed)
    for use in filled.uses:
        try:
            found = added_by(use, shape, adapters=mixed)
        except AddedError as error:
            raise SpecError(
                [Problem(path=use.options_path, message=str(error.cause), code="plugin-options")]
            ) from error
        for added in found:
            if use.group == GATES:
                yield parameter(added, f"mixture.gate.{added.short_name}", "mixture")
            elif use.group == ADAPTERS:
                name = spec.adapters[int(use.path[1])].name
                assert added.layer is not None
                full = adapter_parameter(added.layer, name, added.short_name)
                yield parameter(added, full, f"adapter:{name}")
            else:
                name = spec.tasks[int(use.path[1])].name
                yield parameter(added, head_parameter(name, added.short_name), f"task:{name}")


def _logits(adapters: int) -> Parameter:
    return Parameter(
        name=MIXTURE_LOGITS,
        shape=(adapters,),
        tp_dim=None,
        place="head",
        layer=None,
        init="zeros",
        owner="mixture",
    )
