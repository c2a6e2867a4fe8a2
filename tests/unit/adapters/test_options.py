"""What the options of the built-in adapters refuse."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from llama_scale.adapters.bottleneck import DESCRIPTOR as BOTTLENECK
from llama_scale.adapters.ia3 import Ia3Options
from llama_scale.adapters.lora import LoraOptions, lora_parameters
from llama_scale.adapters.prefix import DESCRIPTOR as PREFIX
from llama_scale.extensions.api import AdapterOptions
from llama_scale.spec.model import ModelShape

SHAPE = ModelShape(
    hidden_size=8, ffn_hidden_size=12, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=2, vocab_size=11
)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (LoraOptions, {"targets": ()}, "at least 1"),
        (LoraOptions, {"targets": ("q_proj", "q_proj")}, "names a layer twice"),
        (LoraOptions, {"targets": ("lm_head",)}, "'q_proj', 'k_proj'"),
        (LoraOptions, {"targets": ("q_proj",), "ranks": {"v_proj": 4}}, "ranks names v_proj, which targets"),
        (LoraOptions, {"dropout": 0.1}, "adapters train without dropout"),
        (LoraOptions, {"rank": 0}, "greater than 0"),
        (Ia3Options, {"targets": ("k_proj", "k_proj")}, "names a layer twice"),
        (Ia3Options, {"targets": ()}, "at least 1"),
        (BOTTLENECK.options, {"after": ()}, "at least 1"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    model: type[AdapterOptions], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        model(**options)


def test_each_target_may_have_a_rank_of_its_own() -> None:
    options = LoraOptions(rank=4, targets=("q_proj", "down_proj"), ranks={"down_proj": 3})
    shapes = {p.name: (p.shape, p.tp_dim) for p in lora_parameters(options, SHAPE, 0)}
    assert shapes == {
        "q_proj.lora_A": ((4, 8), None),
        "q_proj.lora_B": ((8, 4), 0),
        "down_proj.lora_A": ((3, 12), 1),
        "down_proj.lora_B": ((8, 3), None),
    }


def test_what_cannot_be_merged_says_why() -> None:
    assert "activation function" in str(BOTTLENECK.not_mergeable(BOTTLENECK.options()))
    assert "positions to attend to" in str(PREFIX.not_mergeable(PREFIX.options()))
