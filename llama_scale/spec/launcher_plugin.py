"""Section ``launcher`` of a kind that a plugin brings: its own keys are under ``options``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import Field, ValidationError

from llama_scale.errors import Problem
from llama_scale.spec.base import Name, PathContext, Section
from llama_scale.spec.fields import kinds_of, models_of
from llama_scale.spec.launcher import Launcher
from llama_scale.spec.launcher_fields import Forwarded, Grace, Threads, Variables
from llama_scale.spec.structure import integral, translate

SECTION = "launcher"


class PluginLauncher(Section):
    """A launcher that a plugin brings."""

    kind: Name = Field(description="Entry point in group llama_scale.launchers.")
    options: dict[str, Any] = Field({}, description="Options of this kind of launcher.")
    threads_per_process: Threads = None
    grace_s: Grace = 60.0
    env: Variables = Field({})
    forward: Forwarded = ()


BUILT_IN = tuple(kind for model in models_of(Launcher) for kind in kinds_of(model))
"""Kinds whose sections the spec itself knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenOut:
    """A document whose launcher is a plugin's, without it.

    Args:
        data: The document with a built-in launcher in its place.
        launcher: The section; None if it has faults.
        problems: Those.
    """

    data: Mapping[str, Any]
    launcher: PluginLauncher | None
    problems: tuple[Problem, ...]


def take_out(data: Mapping[str, Any], *, context: PathContext | None) -> TakenOut | None:
    """Take a plugin's launcher out of a document; None if it has none, or of a kind that nobody brings."""
    section = data.get(SECTION)
    kind = section.get("kind") if isinstance(section, dict) else None
    if not isinstance(kind, str) or kind in BUILT_IN:
        return None
    from llama_scale.spec.plugins import LAUNCHERS, catalogue  # lazy: only for a kind that is not built in

    if not catalogue().owners(LAUNCHERS, kind):
        return None
    rest = {**data, SECTION: {"kind": BUILT_IN[0]}}
    given = integral(section)
    try:
        launcher = PluginLauncher.model_validate_json(json.dumps(given), context=context, by_alias=True, by_name=False)
    except ValidationError as error:
        found = translate(error, PluginLauncher, given)
        problems = tuple(replace(problem, path=(SECTION, *problem.path)) for problem in found)
        return TakenOut(data=rest, launcher=None, problems=problems)
    return TakenOut(data=rest, launcher=launcher, problems=())
