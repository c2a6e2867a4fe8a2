from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from llama_scale.extensions import discover
from llama_scale.extensions.api import TASKS
from llama_scale.extensions.examples import Example
from llama_scale.spec.model import ModelShape
from tests.engines.specs import SHAPE
from tests.unit.tasks.conftest import DATA

KINDS = ("qa_extractive", "qa_generative", "semantic_search", "sft", "summarization", "translation")
MORE: dict[str, dict[str, Any]] = {"translation": {"languages": {"source": "en", "target": "de"}}}


@pytest.mark.parametrize("kind", KINDS)
def test_sample_rows_are_what_the_task_reads(kind: str) -> None:
    descriptor = discover.task(kind)
    options = discover.read_options(descriptor, {"data": DATA, **MORE.get(kind, {})})

    assert kind in discover.names(TASKS)
    assert len(descriptor.sample) >= 4
    for number, row in enumerate(descriptor.sample):
        options.check(Example(f"sample:{number}", row))
    assert descriptor.files(options) == ("/nowhere.jsonl",)


def test_descriptors_import_nothing_heavy() -> None:
    code = "import sys\n" + "".join(f"import llama_scale.tasks.{kind}\n" for kind in KINDS)
    code += "print([m for m in ('torch', 'numpy', 'pyarrow', 'sacrebleu', 'rouge_score') if m in sys.modules])"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_heads_follow_the_models_shape() -> None:
    shape = ModelShape.model_validate(SHAPE)
    span = discover.task("qa_extractive")
    search = discover.task("semantic_search")

    found = span.parameters(discover.read_options(span, {"data": DATA}), shape)
    assert [(p.name, p.shape) for p in found] == [("weight", (2, 32)), ("bias", (2,))]
    assert search.parameters(discover.read_options(search, {"data": DATA, "matryoshka": [8, 16]}), shape) == ()
    with pytest.raises(ValueError, match=r"matryoshka=\[64\] names 64 dimensions, and embeddings have hidden_size=32"):
        search.parameters(discover.read_options(search, {"data": DATA, "matryoshka": [64]}), shape)
