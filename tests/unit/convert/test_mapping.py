"""The table of names is a bijection between the elements of both sides, and has the order of the fused matrices."""

from __future__ import annotations

import pytest
import torch

from llama_scale.convert.mapping import hf_tensors, slices_of
from llama_scale.layout.boxes import Box
from llama_scale.layout.parameters import iter_parameters
from llama_scale.spec.model import ModelShape
from tests.unit.convert.tiny import Tiny

SHAPE = ModelShape(
    hidden_size=8,
    ffn_hidden_size=12,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=4,
    vocab_size=13,
)


def test_table_names_every_tensor_of_a_hugging_face_model():
    shape = SHAPE.model_copy(
        update={
            "hidden_size": 24,
            "ffn_hidden_size": 36,
            "num_layers": 6,
            "num_heads": 12,
            "num_kv_heads": 12,
            "head_dim": 6,
            "vocab_size": 61,
        }
    )
    expected = {name: tuple(t.shape) for name, t in Tiny().tensors().items()}
    assert {name: tensor.shape for name, tensor in hf_tensors(shape).items()} == expected


def test_tied_model_has_no_output_layer():
    tied = SHAPE.model_copy(update={"tie_word_embeddings": True})
    assert "lm_head.weight" in hf_tensors(SHAPE)
    assert "lm_head.weight" not in hf_tensors(tied)


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
def test_slices_map_each_element_once_in_both_directions(kv_heads):
    shape = SHAPE.model_copy(update={"num_kv_heads": kv_heads})
    used = {name: torch.zeros(tensor.shape, dtype=torch.int32) for name, tensor in hf_tensors(shape).items()}
    for parameter in iter_parameters(shape):
        written = torch.zeros(parameter.shape, dtype=torch.int32)
        for part in slices_of(parameter, shape):
            assert part.native_box.numel == part.hf_box.numel
            written[part.native_box.slices_within(Box.whole(parameter.shape))] += 1
            used[part.hf_name][part.hf_box.slices_within(Box.whole(tuple(used[part.hf_name].shape)))] += 1
        assert (written == 1).all(), parameter.name
    assert all((count == 1).all() for count in used.values())


def test_qkv_holds_the_groups_queries_then_its_key_then_its_value():
    fused = next(p for p in iter_parameters(SHAPE) if p.name.endswith("linear_qkv.weight"))
    order = [(s.hf_name.split(".")[4][0], s.hf_offset[0], s.native_box.offset[:2]) for s in slices_of(fused, SHAPE)]
    assert order == [
        ("q", 0, (0, 0)),
        ("k", 0, (0, 12)),
        ("v", 0, (0, 16)),
        ("q", 12, (1, 0)),
        ("k", 4, (1, 12)),
        ("v", 4, (1, 16)),
    ]


def test_slice_within_a_box_moves_both_sides_together():
    fused = next(p for p in iter_parameters(SHAPE) if p.name.endswith("linear_fc1.weight"))
    _, up = slices_of(fused, SHAPE)
    part = up.within(Box((0, 4, 0), (2, 4, 8)))
    assert part is not None
    assert (part.hf_name, part.hf_box) == ("model.layers.0.mlp.up_proj.weight", Box((4, 0), (4, 8)))
    assert part.native_box == Box((1, 4, 0), (1, 4, 8))
    assert up.within(Box((0, 0, 0), (1, 12, 8))) is None
