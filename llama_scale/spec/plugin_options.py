"""Options of plugins: checked by the plugin's own model at their place in the document, defaults filled in.

Only specs that name a plugin come here. The options of a resolved spec are plain data (so that a digest covers them and
any process can read them); ``Use.options`` is the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from llama_scale.errors import PLUGIN_CODE, PluginError, Problem
from llama_scale.spec.base import PathContext, Section
from llama_scale.spec.launcher_plugin import PluginLauncher
from llama_scale.spec.plugins import ADAPTERS, GATES, LAUNCHERS, NOUNS, TASKS, Catalogue, catalogue
from llama_scale.spec.structure import integral, show, translate
from llama_scale.spec.view import Absent

_SECTIONS = ("adapters", "tasks", "mixture", "launcher")

DEFAULT_GATE = "linear"
"""The gate of ``weights: gate`` where none is named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One plugin that a spec uses.

    Args:
        group: Its entry point group.
        path: Path of what names it: ``("adapters", 0)``, ``("mixture",)``.
        options_path: Path of its options.
        descriptor: Its descriptor.
        options: Its options as a model; None if they have faults.
    """

    group: str
    path: tuple[str | int, ...]
    options_path: tuple[str | int, ...]
    descriptor: Any
    options: Section | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """Sections with all options of plugins filled in, the plugins used, and the problems found on the way."""

    sections: dict[str, Any]
    uses: tuple[Use, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mention:
    """A place of a spec that names a plugin."""

    group: str
    path: tuple[str | int, ...]
    kind_key: str
    kind: str
    options_key: str
    options: Mapping[str, Any]


def fill_options(sections: Mapping[str, Any], *, context: PathContext | None = None) -> Filled:
    """Check the options of all plugins that a spec's sections name.

    Args:
        sections: Section name -> its model, or a view of what is good of it.
        context: Gives paths their meaning.
    """
    values = dict(sections)
    mentions = [
        mention for section in ("adapters", "tasks", "mixture", "launcher") for mention in _mentions(values, section)
    ]
    if not mentions:
        return Filled(sections=values, uses=(), problems=())
    installed = catalogue()
    uses: list[Use] = []
    problems: list[Problem] = []
    for mention in mentions:
        use, found = _use(mention, installed, context)
        problems += found
        if use is not None:
            uses.append(use)
            if use.options is not None:
                filled, found = _plain(mention, use)
                problems += found
                _put(values, mention, filled)
    return Filled(sections=values, uses=tuple(uses), problems=tuple(problems))


def _mentions(sections: Mapping[str, Any], section: str) -> Iterator[_Mention]:
    if section in ("adapters", "tasks"):
        group = ADAPTERS if section == "adapters" else TASKS
        for index, item in enumerate(sections.get(section, ())):
            with suppress(Absent):  # its kind or its options have faults of form, which are reported already
                yield _Mention(
                    group=group,
                    path=(section, index),
                    kind_key="kind",
                    kind=item.kind,
                    options_key="options",
                    options=item.options,
                )
    elif section == "launcher":
        launcher = sections.get(section)
        if isinstance(launcher, PluginLauncher):
            yield _Mention(
                group=LAUNCHERS,
                path=(section,),
                kind_key="kind",
                kind=launcher.kind,
                options_key="options",
                options=launcher.options,
            )
    elif (mixture := sections.get(section)) is not None:
        with suppress(Absent):
            if mixture.weights == "gate":
                yield _Mention(
                    group=GATES,
                    path=(section,),
                    kind_key="gate",
                    kind=DEFAULT_GATE if mixture.gate is None else mixture.gate,
                    options_key="gate_options",
                    options=mixture.gate_options,
                )


def _use(mention: _Mention, installed: Catalogue, context: PathContext | None) -> tuple[Use | None, list[Problem]]:
    kind_path = (*mention.path, mention.kind_key)
    if not installed.owners(mention.group, mention.kind):
        message = f"no {NOUNS[mention.group]} of kind {show(mention.kind)} is installed"
        hint = installed.missing_hint(mention.group, mention.kind)
        return None, [Problem(path=kind_path, message=message, hint=hint, code="unknown-kind")]
    try:
        descriptor = installed.load(mention.group, mention.kind)
    except PluginError as error:
        message, _, hint = str(error).rpartition("; ")
        return None, [Problem(path=kind_path, message=message, hint=hint, code=PLUGIN_CODE)]
    options_path = (*mention.path, mention.options_key)
    options, problems = check_options(descriptor, mention.options, options_path, context)
    return (
        Use(group=mention.group, path=mention.path, options_path=options_path, descriptor=descriptor, options=options),
        problems,
    )


def check_options(
    descriptor: Any, given: Mapping[str, Any], path: tuple[str | int, ...], context: PathContext | None
) -> tuple[Section | None, list[Problem]]:
    """Return a plugin's options as the model that its descriptor names, or None and what is wrong with them.

    Args:
        descriptor: The plugin's descriptor.
        given: The options as plain data.
        path: Where they stand in the document, for problems.
        context: Gives paths among them their meaning.
    """
    model: type[Section] = descriptor.options
    data = integral(dict(given))
    try:
        return model.model_validate_json(json.dumps(data), context=context, by_alias=True, by_name=False), []
    except ValidationError as error:
        return None, [replace(p, path=(*path, *p.path)) for p in translate(error, model, data)]
    except Exception as error:  # a validator of a plugin may raise anything
        return None, [_plugin_problem(path, descriptor, "checking these options", error)]


def _plain(mention: _Mention, use: Use) -> tuple[dict[str, Any], list[Problem]]:
    """Return the options with their defaults as plain data that reads back."""
    assert use.options is not None
    try:
        plain: dict[str, Any] = use.options.model_dump(mode="json", by_alias=True)
        json.dumps(plain, allow_nan=False)
    except Exception as error:  # see check_options
        return dict(mention.options), [_plugin_problem(use.options_path, use.descriptor, "writing its options", error)]
    return plain, []


def _plugin_problem(path: tuple[str | int, ...], descriptor: Any, what: str, error: Exception) -> Problem:
    return plugin_problem(path, f"{descriptor.name!r} failed while {what}", error)


def plugin_problem(path: tuple[str | int, ...], what: str, error: Exception) -> Problem:
    """Word an exception of a plugin's own code."""
    text = " ".join(str(error).split()) or "no message"
    return Problem(
        path=path,
        message=f"plugin {what}: {type(error).__name__}: {text}",
        hint="report it to the plugin's authors; `llama-scale plugins check` shows more",
        code=PLUGIN_CODE,
    )


def _put(sections: dict[str, Any], mention: _Mention, options: dict[str, Any]) -> None:
    update = {mention.kind_key: mention.kind, mention.options_key: options}
    section = str(mention.path[0])
    if len(mention.path) == 1:
        sections[section] = sections[section].model_copy(update=update)
        return
    items = list(sections[section])
    index = int(mention.path[1])
    items[index] = items[index].model_copy(update=update)
    sections[section] = tuple(items)
