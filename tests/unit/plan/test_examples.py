"""The examples in docstrings run."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["flops", "hardware", "stages"])
def test_examples_in_docstrings_run(name: str) -> None:
    failed, attempted = doctest.testmod(importlib.import_module(f"llama_scale.plan.{name}"))

    assert failed == 0
    assert attempted > 0
