from __future__ import annotations

import torch
from torch import nn

from llama_scale.extensions.adapter import attach
from llama_scale.gates.linear import DESCRIPTOR
from llama_scale.spec.plugins import import_object
from tests.engines.specs import Case


def test_linear_gate_begins_uniform_and_reads_the_hidden_state() -> None:
    shape = Case().plan().shape
    options = DESCRIPTOR.options()
    gate = import_object(DESCRIPTOR.implementation)(options, 3)
    for parameter in DESCRIPTOR.parameters(options, shape, 3):
        assert parameter.init == "zeros" and parameter.tp_dim is None and parameter.trainable
        attach(gate, parameter.name, nn.Parameter(torch.zeros(parameter.shape)))
    trunk = torch.randn(2, 5, shape.hidden_size, dtype=torch.bfloat16)

    scores = gate(trunk)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(torch.softmax(scores, -1), torch.full((2, 5, 3), 1 / 3))

    gate.get_parameter("weight").data.normal_()
    gate.get_parameter("bias").data.normal_()
    expected = trunk.float() @ gate.get_parameter("weight").t() + gate.get_parameter("bias")
    torch.testing.assert_close(gate(trunk), expected)
    assert {name for name, _ in gate.named_parameters()} == {"weight", "bias"}
