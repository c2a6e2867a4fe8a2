"""The suite for gates."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llama_scale.extensions import discover
from llama_scale.extensions.adapter import attach
from llama_scale.extensions.api import ExtraParameter
from llama_scale.extensions.conformance import CheckRequest
from llama_scale.extensions.gate import Gate
from llama_scale.train.conformance import light
from llama_scale.train.conformance.report import Failed, Report
from llama_scale.train.conformance.tiny import Tiny

ADAPTERS = 3


def check(report: Report, request: CheckRequest, folder: Path) -> None:
    """Make all checks of one gate."""
    del folder
    descriptor = discover.gate(request.name)
    report.check("light descriptor", partial(light.descriptor_is_light, request))
    report.check("implementation", partial(light.implementation_of, request, descriptor, Gate))
    allowed = ("torch", "llama_scale.extensions.gate")
    report.check("imports of the implementation", partial(light.imports_only, descriptor, allowed))
    options = discover.read_options(descriptor, request.options)
    shape = Tiny().plan().shape
    ask = partial(descriptor.parameters, options, shape, ADAPTERS)
    parameters = report.check("options and parameters", partial(light.same_twice, ask))
    if parameters is not None:
        report.check("scores", partial(_scores, descriptor, options, parameters, shape.hidden_size))


def _scores(descriptor: Any, options: Any, parameters: Sequence[ExtraParameter], hidden: int) -> str:
    """Scores are fp32, one an adapter, and their gradient reaches every parameter."""
    gate: Gate = discover.implementation(descriptor)(options, ADAPTERS)
    generator = torch.Generator().manual_seed(3)
    for parameter in parameters:
        value = torch.randn(parameter.shape, generator=generator) * 0.1
        attach(gate, parameter.name, nn.Parameter(value, requires_grad=parameter.trainable))
    trunk = torch.randn(5, 2, hidden, generator=generator)
    for dtype in (torch.bfloat16, torch.float32):
        scores = gate(trunk.to(dtype))
        if scores.shape != (5, 2, ADAPTERS) or scores.dtype != torch.float32:
            found = f"{list(scores.shape)} {scores.dtype}"
            raise Failed(f"made {found} of [5, 2, {hidden}] {dtype}; scores are [5, 2, {ADAPTERS}] torch.float32")
        if not torch.isfinite(scores).all():
            raise Failed("its scores are not finite")
    torch.log_softmax(scores, dim=-1)[..., 0].sum().backward()
    without = [name for name, p in gate.named_parameters() if p.requires_grad and p.grad is None]
    if without:
        raise Failed(f"{without[0]} gets no gradient")
    return f"{len(parameters)} parameters"
