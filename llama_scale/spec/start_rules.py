"""Rules about where a run's weights come from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llama_scale.errors import Problem
from llama_scale.spec.rule import Rule, problem

if TYPE_CHECKING:
    from llama_scale.spec.run import RunSpec


def _adapters_have_a_base(spec: RunSpec) -> Iterator[Problem]:
    if spec.adapters and spec.train.from_ is None and spec.model.init_from is None:
        yield problem(
            "adapters",
            "adapters train on a frozen base, and this one would be drawn from the seed: a preset and inline numbers "
            "have no weights",
            hint="use model: {kind: hf, path: FOLDER} or set model.init_from to a Hugging Face or checkpoint folder; "
            "for a random base on purpose write train: {from: scratch}",
            code="adapters-base",
        )


def _weights_have_a_folder(spec: RunSpec) -> Iterator[Problem]:
    if spec.train.from_ == "weights" and spec.model.init_from is None:
        yield problem(
            "train.from",
            "from: weights, and no folder is named: a preset and inline numbers have no weights",
            hint="use model: {kind: hf, path: FOLDER}, or set model.init_from to a Hugging Face or checkpoint folder",
            code="weights-folder",
        )


def _scratch_has_none(spec: RunSpec) -> Iterator[Problem]:
    if spec.train.from_ != "scratch":
        return
    if spec.model.init_from is not None:
        yield problem(
            "train.from",
            f"from: scratch draws the weights from the seed, and model.init_from names {spec.model.init_from}",
            hint="remove one of the two",
            code="scratch-folder",
        )
    elif spec.model.base_name is not None:
        yield problem(
            "model.base_name",
            "base_name names the folder that the weights come from, and they are drawn from the seed",
            hint="remove base_name, or write train: {from: weights}",
            code="base-name",
        )


RULES = (
    Rule(("train", "model", "adapters", "tasks"), _adapters_have_a_base),
    Rule(("train", "model"), _weights_have_a_folder),
    Rule(("train", "model"), _scratch_has_none),
)
"""All rules of this file."""
