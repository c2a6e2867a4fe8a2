"""`plugins check NAME` of a built-in plugin needs no options, whatever has no default there."""

from __future__ import annotations

import pytest

from llama_scale.extensions import discover
from llama_scale.extensions.api import LAUNCHERS, TASKS
from llama_scale.extensions.conformance import CheckRequest, passed, run_suite
from llama_scale.spec.plugins import catalogue


@pytest.mark.parametrize("name", ["ssh", "kubernetes"])
def test_launchers_have_what_they_cannot_do_without(name: str) -> None:
    checks = run_suite(CheckRequest(group=LAUNCHERS, name=name, options={}))

    assert passed(checks), checks


def test_every_task_has_what_it_cannot_do_without() -> None:
    for name in catalogue().names(TASKS):
        task = discover.task(name)
        needed = {field for field, info in task.options.model_fields.items() if info.is_required()}
        assert needed <= {"data", *task.sample_options}, name
