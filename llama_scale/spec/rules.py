"""Every rule that a spec's sections keep together; each file beside this one holds the rules of one subject."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from llama_scale.errors import Problem
from llama_scale.spec import compatibility, launcher_rules, layout_rules, model_rules, run_rules

if TYPE_CHECKING:
    from llama_scale.spec.run import RunSpec

RULES = (*model_rules.RULES, *layout_rules.RULES, *run_rules.RULES, *launcher_rules.RULES, *compatibility.RULES)
"""All rules, in the order in which their problems are listed."""


def check_rules(view: RunSpec, broken: Collection[str] = ()) -> list[Problem]:
    """Return the problems of all rules whose sections are whole.

    Args:
        view: Reads like a resolved RunSpec.
        broken: Sections that have problems of their own; rules that need them do not run.
    """
    return [found for rule in RULES if not set(rule.needs) & set(broken) for found in rule.check(view)]
