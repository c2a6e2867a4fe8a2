from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llama_scale.checkpoint.initial import fill
from llama_scale.layout.boxes import Box
from llama_scale.layout.parameters import Parameter
from tests.properties import examples


def parameter(shape: tuple[int, ...], *, name: str = "decoder.layers.0.mlp.linear_fc1.weight") -> Parameter:
    return Parameter(name=name, shape=shape, tp_dim=1, place="layer", layer=0, init="normal")


def part(p: Parameter, box: Box, *, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    target = torch.full(box.shape, torch.nan, dtype=dtype)
    fill(target, p, box, seed=seed, std=0.5)
    return target


WIDE = parameter((2, 300, 1100))
WHOLE = part(WIDE, Box.whole(WIDE.shape))


@given(st.data())
@examples(25)
def test_any_box_equals_the_whole_tensors_part(data: st.DataObject) -> None:
    bounds = [sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in WIDE.shape]
    box = Box(tuple(a for a, _ in bounds), tuple(b - a for a, b in bounds))

    assert torch.equal(part(WIDE, box), WHOLE[box.slices_within(Box.whole(WIDE.shape))])


def test_values_are_normal_and_no_two_places_share_a_stream() -> None:
    assert WHOLE.std().item() == pytest.approx(0.5, rel=0.01)
    assert WHOLE.mean().item() == pytest.approx(0.0, abs=0.003)
    assert WHOLE.unique().numel() > 0.98 * WHOLE.numel()
    correlation = (WHOLE[0] * WHOLE[1]).mean().item() / 0.25
    assert abs(correlation) < 4 / math.sqrt(300 * 1100)


def test_seed_and_name_matter() -> None:
    box = Box.whole((4, 8))
    values = part(parameter((4, 8)), box)

    assert torch.equal(values, part(parameter((4, 8)), box))
    assert not torch.equal(values, part(parameter((4, 8)), box, seed=2))
    assert not torch.equal(values, part(parameter((4, 8), name="decoder.layers.1.mlp.linear_fc1.weight"), box))


def test_low_precision_is_the_rounded_value() -> None:
    p = parameter((4, 8))

    assert torch.equal(part(p, Box.whole(p.shape), dtype=torch.bfloat16), part(p, Box.whole(p.shape)).bfloat16())


def test_norms_are_ones() -> None:
    norm = Parameter(
        name="decoder.final_layernorm.weight", shape=(7,), tp_dim=None, place="final_norm", layer=None, init="ones"
    )

    assert torch.equal(part(norm, Box.whole((7,))), torch.ones(7))
