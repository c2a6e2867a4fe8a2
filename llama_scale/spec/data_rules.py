"""Rules about the section ``data``: what examples of tasks need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llama_scale.errors import Problem
from llama_scale.spec.rule import Rule, problem

if TYPE_CHECKING:
    from llama_scale.spec.run import RunSpec


def _task_tokenizer(spec: RunSpec) -> Iterator[Problem]:
    if spec.data.kind == "tasks" and spec.tokenizer is None:
        yield problem(
            "tokenizer",
            "data.kind: tasks makes token sequences of text, and the spec names no tokenizer",
            hint="add tokenizer: {kind: hf, path: FOLDER} or {kind: sentencepiece, path: FILE}",
            code="task-tokenizer",
        )


RULES = (Rule(("data", "tokenizer"), _task_tokenizer),)
"""All rules of this file."""
