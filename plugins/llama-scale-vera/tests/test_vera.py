"""VeRA through llama-scale's own commands, and its formula."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from llama_scale_vera import DESCRIPTOR, VeraOptions, vera_parameters
from llama_scale_vera.layer import Vera

from llama_scale.extensions.adapter import LayerContext, Tensor, attach
from llama_scale.extensions.api import ModelShape

SHAPE = ModelShape(
    hidden_size=8, ffn_hidden_size=12, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=4, vocab_size=11
)


def _adapter(target: str, *, layer: int = 0, seed: int = 5) -> Vera:
    options = VeraOptions(rank=3, targets=(target,))
    context = LayerContext(
        layer=layer, sizes={}, tensor=Tensor(), base_weight=lambda _: torch.zeros(0), seed=seed, shared={}
    )
    adapter = Vera(SimpleNamespace(**options.model_dump()), context)
    generator = torch.Generator().manual_seed(layer)
    for parameter in vera_parameters(options, SHAPE, layer):
        attach(adapter, parameter.name, torch.nn.Parameter(torch.randn(parameter.shape, generator=generator)))
    return adapter


@pytest.mark.parametrize("target", ["q_proj", "down_proj"])
def test_output_is_that_of_the_merged_matrix(target: str) -> None:
    adapter = _adapter(target)
    outputs, inputs = {"q_proj": (8, 8), "down_proj": (8, 12)}[target]
    weight, x = torch.randn(outputs, inputs), torch.randn(5, 2, inputs)

    found = adapter.output(target, x, x @ weight.t())

    torch.testing.assert_close(found, x @ adapter.merged_weight(target, weight).t())
    assert torch.equal(adapter.merged_weight("o_proj", weight), weight)


def test_layers_share_the_matrices_and_the_seed_draws_them() -> None:
    first, second, other = _adapter("q_proj"), _adapter("q_proj", layer=1), _adapter("q_proj", seed=6)
    device = torch.device("cpu")

    drawn = first._matrix("A", 8, divided=False, device=device)
    assert torch.equal(drawn, second._matrix("A", 8, divided=False, device=device))
    assert not torch.equal(drawn, other._matrix("A", 8, divided=False, device=device))


def test_two_vectors_a_target_and_no_target_twice() -> None:
    found = vera_parameters(VeraOptions(targets="all-linear"), SHAPE, 0)
    assert [p.shape for p in found[:2]] == [(64,), (8,)] and len(found) == 14
    with pytest.raises(ValueError, match="names a layer twice"):
        VeraOptions(targets=("q_proj", "q_proj"))
    assert DESCRIPTOR.not_mergeable(VeraOptions()) is None


def test_conformance() -> None:
    command = [sys.executable, "-m", "llama_scale", "plugins", "check", "vera", "--json"]
    done = subprocess.run([*command, "--options", "{rank: 6, targets: all-linear}"], capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
    checks = {check["name"]: check["status"] for check in json.loads(done.stdout)}
    assert checks["merged equals unmerged"] == "passed"
    assert checks["sequence parallel equals one process"] == "passed"
