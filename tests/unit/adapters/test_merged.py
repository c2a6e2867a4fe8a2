"""A merged matrix computes what base and adapter compute together."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llama_scale.adapters.ia3 import DESCRIPTOR as IA3
from llama_scale.adapters.lora import DESCRIPTOR as LORA
from llama_scale.extensions.adapter import LayerAdapter, LayerContext, Tensor, attach
from llama_scale.extensions.api import AdapterDescriptor
from llama_scale.extensions.linears import LINEARS, Target, linear_size
from llama_scale.spec.plugins import import_object
from tests.unit.adapters.test_options import SHAPE


def adapter_with_values(descriptor: AdapterDescriptor, options: Any, weights: dict[str, torch.Tensor]) -> LayerAdapter:
    context = LayerContext(layer=1, sizes={}, tensor=Tensor(), base_weight=weights.__getitem__)
    module: LayerAdapter = import_object(descriptor.implementation)(options, context)
    for number, row in enumerate(descriptor.parameters(options, SHAPE, 1)):
        generator = torch.Generator().manual_seed(number)
        attach(module, row.name, torch.nn.Parameter(torch.randn(row.shape, generator=generator)))
    return module


@pytest.mark.parametrize("target", LINEARS)
@pytest.mark.parametrize(
    ("descriptor", "options"),
    [
        (LORA, {"rank": 3, "alpha": 5}),
        (LORA, {"rank": 3, "rs_lora": True, "targets": ("q_proj", "down_proj")}),
        (LORA, {"rank": 2, "dora": True}),
        (IA3, {}),
    ],
    ids=["lora", "rslora", "dora", "ia3"],
)
def test_a_merged_matrix_computes_the_same(
    descriptor: AdapterDescriptor, options: dict[str, Any], target: Target
) -> None:
    generator = torch.Generator().manual_seed(99)
    weights: dict[str, torch.Tensor] = {
        name: torch.randn(linear_size(SHAPE, name), generator=generator) for name in LINEARS
    }
    adapter = adapter_with_values(descriptor, descriptor.options(**options), weights)
    x = torch.randn(5, 2, weights[target].shape[1], generator=generator)

    inner = adapter.input(target, x) if target in adapter.changes_input else x
    y = inner @ weights[target].t()
    together = adapter.output(target, inner, y) if target in adapter.outputs() else y

    torch.testing.assert_close(x @ adapter.merged_weight(target, weights[target]).t(), together, rtol=1e-4, atol=1e-4)
