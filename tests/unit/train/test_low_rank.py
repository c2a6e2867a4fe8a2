"""Changes of a fused projection at once, against each part's own ``output``: values and gradients."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from llama_scale.adapters.lora_module import Lora
from llama_scale.extensions.adapter import LayerAdapter, LayerContext, Tensor, attach
from llama_scale.train.low_rank import Fused, apply_changes, low_rank_changes

_IN, _GROUPS = 20, 3
_QKV = {"q_proj": 8, "k_proj": 4, "v_proj": 4}
_MLP = {"gate_proj": 10, "up_proj": 10}


def _lora(parts: dict[str, int], groups: int, **options: Any) -> Lora:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    bases = {target: draw(groups * width, _IN) for target, width in parts.items()}
    values = {"targets": "all-linear", "alpha": 3.0, "alphas": {}, "rs_lora": False, "dora": False} | options
    context = LayerContext(layer=0, sizes={}, tensor=Tensor(), base_weight=bases.__getitem__)
    lora = Lora(SimpleNamespace(**values), context)
    for number, (target, width) in enumerate(parts.items()):
        rank = 2 + number
        attach(lora, f"{target}.lora_A", nn.Parameter(draw(rank, _IN)))
        attach(lora, f"{target}.lora_B", nn.Parameter(draw(groups * width, rank)))
        attach(lora, f"{target}.magnitude_change", nn.Parameter(draw(groups * width)))
    return lora


def _apart(lora: Lora, targets: set[str], x: torch.Tensor, y: torch.Tensor, fused: Fused) -> torch.Tensor:
    """Change each part by itself."""
    by_group = y.unflatten(-1, (fused.groups, -1)).split(list(fused.parts.values()), dim=-1)
    parts = [
        lora.output(target, x, part.flatten(2)).view(part.shape) if target in targets else part
        for target, part in zip(fused.parts, by_group, strict=True)
    ]
    return torch.cat(parts, dim=-1).flatten(2)


@pytest.mark.parametrize(
    ("parts", "groups", "options"),
    [
        (_QKV, _GROUPS, {}),
        (_QKV, _GROUPS, {"targets": ("q_proj", "v_proj"), "alphas": {"v_proj": 5.0}}),
        (_QKV, _GROUPS, {"dora": True, "targets": ("k_proj",)}),
        (_MLP, 1, {"rs_lora": True}),
        (_MLP, 1, {"dora": True}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_changes_at_once_equal_changes_apart(
    parts: dict[str, int], groups: int, options: dict[str, Any], dtype: torch.dtype
) -> None:
    lora, fused = _lora(parts, groups, **options), Fused(parts, groups=groups)
    targets = set(parts) & lora.outputs()
    x = torch.randn(5, 2, _IN, dtype=dtype, requires_grad=True)
    y = torch.randn(5, 2, groups * sum(parts.values()), dtype=dtype, requires_grad=True)
    weights = [p for name, p in lora.named_parameters() if name.split(".")[0] in targets]
    weights = [p for p in weights if options.get("dora") or p.dim() == 2]

    changes = low_rank_changes(lora, sorted(targets))
    assert changes is not None
    found = apply_changes(lora, changes, x, y, fused=fused)
    expected = _apart(lora, targets, x, y, fused)

    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 1e-1}
    torch.testing.assert_close(found, expected, **close)
    grad = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad(found, (x, y, *weights), grad), torch.autograd.grad(expected, (x, y, *weights), grad),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(one, other, **close)


def test_adapter_of_another_form_is_left_to_its_outputs() -> None:
    plain = LayerAdapter(SimpleNamespace(), LayerContext(layer=0, sizes={}, tensor=Tensor(), base_weight=lambda t: t))
    assert low_rank_changes(plain, ["q_proj"]) is None
    assert low_rank_changes(plain, []) == {}
