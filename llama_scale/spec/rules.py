"""Every rule that a spec's sections keep together; each file beside this one holds the rules of one subject."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from llama_scale.errors import Problem
from llama_scale.spec import (
    adapter_rules,
    compatibility,
    data_rules,
    launcher_rules,
    layout_rules,
    model_rules,
    run_rules,
    scheduler_rules,
    start_rules,
)
from llama_scale.spec.view import Absent

if TYPE_CHECKING:
    from llama_scale.spec.rule import Rule

RULES = (
    *model_rules.RULES,
    *layout_rules.RULES,
    *run_rules.RULES,
    *start_rules.RULES,
    *data_rules.RULES,
    *adapter_rules.RULES,
    *launcher_rules.RULES,
    *scheduler_rules.RULES,
    *compatibility.RULES,
)
"""All rules, in the order in which their problems are listed."""


def check_rules(view: Any, broken: Collection[str] = ()) -> list[Problem]:
    """Return the problems of all rules as far as their inputs are valid.

    Args:
        view: Reads like a resolved RunSpec; fields with faults of their own may be absent from its sections.
        broken: Sections that are not there at all; rules that need them do not run.
    """
    return [found for rule in RULES if not set(rule.needs) & set(broken) for found in _check(rule, view)]


def _check(rule: Rule, view: Any) -> list[Problem]:
    found: list[Problem] = []
    try:
        for problem in rule.check(view):
            found.append(problem)
    except Absent:
        pass  # what the rule has not looked at yet follows from a faulty value, which is reported already
    return found
