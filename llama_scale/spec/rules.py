"""Rules that cross sections."""

from __future__ import annotations

from llama_scale.errors import Problem
from llama_scale.spec.resolve import Resolution


def check_rules(resolution: Resolution) -> list[Problem]:
    """Return the problems of all rules whose sections are whole."""
    return []
