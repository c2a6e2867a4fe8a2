"""Rules about the plugins that a spec uses: the parameters they add have to fit the model and its layout."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from typing import Any

from llama_scale.errors import Problem
from llama_scale.spec.adapters import mixed_adapters
from llama_scale.spec.added import Added, AddedError, added_by
from llama_scale.spec.model import ModelShape
from llama_scale.spec.nearby import divisors, either
from llama_scale.spec.plugin_options import Use, plugin_problem
from llama_scale.spec.plugins import ADAPTERS, GATES, LAUNCHERS, TASKS
from llama_scale.spec.view import Absent


def check_uses(view: Any, uses: Sequence[Use], broken: Collection[str] = ()) -> list[Problem]:
    """Return the problems of all plugins of a spec whose options are good.

    Args:
        view: Reads like a resolved RunSpec; fields with faults of their own may be absent from its sections.
        uses: The plugins.
        broken: Sections that are not there at all; rules that need them do not run.
    """
    rules = [rule for needs, rule in _RULES if not set(needs) & set(broken)]
    return [problem for use in uses for rule in rules for problem in _collect(rule(view, use))]


def _collect(found: Iterator[Problem]) -> Iterator[Problem]:
    with suppress(Absent):  # what the rule reads next is faulty, which is reported already
        yield from found


def _fits(view: Any, use: Use) -> Iterator[Problem]:
    if use.options is None or use.group == LAUNCHERS:
        return
    shape = ModelShape.model_construct(**{key: getattr(view.model, key) for key in ModelShape.model_fields})
    try:
        mixed = len(mixed_adapters(view.adapters, view.mixture)) if use.group == GATES else 0
        added = added_by(use, shape, adapters=mixed)
    except AddedError as error:
        yield _word(use, error)
        return
    if use.group == ADAPTERS and not added:
        yield Problem(
            path=use.options_path,
            message=f"adapter {use.descriptor.name!r} with these options touches no module of any layer",
            hint="name at least one target",
            code="adapter-empty",
        )
    yield from _divides(view.parallel.tensor, use, added)


def _word(use: Use, error: AddedError) -> Problem:
    if isinstance(error.cause, ValueError):
        message, _, hint = str(error.cause).partition("; ")
        path = (*use.options_path, *error.field)
        return Problem(path=path, message=message, hint=hint, code="plugin-options")
    return plugin_problem(use.options_path, f"{use.descriptor.name!r} failed while {error.doing}", error.cause)


def _divides(tensor: int, use: Use, added: Sequence[Added]) -> Iterator[Problem]:
    told: set[tuple[str, int]] = set()
    for parameter in added:
        if parameter.tp_dim is None or parameter.shape[parameter.tp_dim] % tensor == 0:
            continue
        size = parameter.shape[parameter.tp_dim]
        if (parameter.short_name, size) in told:
            continue  # the same in every layer
        told.add((parameter.short_name, size))
        yield Problem(
            path=use.options_path,
            message=f"tensor={tensor} does not divide {parameter.short_name}, whose dim {parameter.tp_dim} is {size}",
            hint=f"use tensor {either(divisors(size))}, or options that give another size",
            code="adapter-tensor",
        )


def _heads(view: Any, use: Use) -> Iterator[Problem]:
    if use.group != TASKS or view.mixture is None or use.descriptor.head == "lm":
        return
    objective, task = view.mixture.objective, view.tasks[use.path[1]].name
    served_by = [adapter.name for adapter in view.adapters if adapter.task == task]
    if served_by and not set(served_by) & set(mixed_adapters(view.adapters, view.mixture)):
        return
    unmixable = getattr(use.descriptor, "unmixable", None)
    if unmixable is not None:
        reason = unmixable
    elif objective != "per_task":
        reason = f"objective: {objective} mixes next-token distributions, and this task's head gives none"
    else:
        return
    yield Problem(
        path=(*use.path, "kind"),
        message=f"{use.descriptor.name} does not go with a mixture: {reason}",
        hint="leave its adapter out (mixture.adapters names those that are mixed), or train it in a run of its own",
        code="task-mixture",
    )


_RULES = (
    (("model", "parallel", "adapters"), _fits),
    (("mixture", "adapters", "tasks"), _heads),
)
"""Sections that a rule reads, and the rule."""
