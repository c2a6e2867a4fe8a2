from __future__ import annotations

import pytest
import torch
from torch import nn

from llama_scale.layout.boxes import Box
from llama_scale.layout.parameters import Parameter
from llama_scale.train.names import LocalParameter, global_name


@pytest.mark.parametrize(
    ("local", "expected"),
    [
        ("embedding.word_embeddings.weight", "embedding.word_embeddings.weight"),
        ("decoder.layers.1.mlp.linear_fc2.weight", "decoder.layers.9.mlp.linear_fc2.weight"),
        # Transformer Engine keeps norms in the layers behind them.
        ("decoder.layers.0.self_attention.linear_qkv.layer_norm_weight", "decoder.layers.4.input_layernorm.weight"),
        ("decoder.layers.1.mlp.linear_fc1.layer_norm_weight", "decoder.layers.9.pre_mlp_layernorm.weight"),
    ],
)
def test_global_name_counts_layers_over_the_whole_model(local: str, expected: str) -> None:
    assert global_name(local, (4, 9)) == expected


def test_view_leaves_padding_out() -> None:
    table = Parameter(name="output_layer.weight", shape=(5, 2), tp_dim=0, place="head", layer=None, init="normal")
    tensor = nn.Parameter(torch.arange(8.0).view(4, 2))
    local = LocalParameter(parameter=table, tensor=tensor, box=Box((4, 0), (1, 2)))

    assert local.view().tolist() == [[0.0, 1.0]]
    assert local.view(torch.ones(8)).tolist() == [[1.0, 1.0]]
    local.view().fill_(7)
    assert tensor.detach().tolist() == [[7, 7], [2, 3], [4, 5], [6, 7]]
