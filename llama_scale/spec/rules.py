"""Every rule that a spec's sections keep together; each file beside this one holds the rules of one subject."""

from __future__ import annotations

from llama_scale.errors import Problem
from llama_scale.spec import compatibility, layout_rules, model_rules, run_rules
from llama_scale.spec.resolve import Resolution

RULES = (*model_rules.RULES, *layout_rules.RULES, *run_rules.RULES, *compatibility.RULES)
"""All rules, in the order in which their problems are listed."""


def check_rules(resolution: Resolution) -> list[Problem]:
    """Return the problems of all rules whose sections are whole."""
    return [
        found
        for rule in RULES
        if not resolution.broken.intersection(rule.needs)
        for found in rule.check(resolution.view)
    ]
