"""The mixture at the model's end: prior or gate, and what all adapters' hidden states make of a micro-batch.

Shape letters: N adapters, B rows of the micro-batch, M those of them that are the mixture's, R rows after the branch
(see ``mixture_rows``), S sequence, H hidden, V vocabulary rows of this rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from llama_scale.extensions import discover
from llama_scale.spec.adapters import mixed_adapters
from llama_scale.spec.plugin_options import DEFAULT_GATE
from llama_scale.train import mixture as math
from llama_scale.train.loss import linear_log_probabilities, sharded_log_softmax
from llama_scale.train.statistics import RESPONSIBILITY, TASK, Tally

if TYPE_CHECKING:
    from llama_scale.extensions.gate import Gate
    from llama_scale.spec.adapters import Mixture as MixtureSection
    from llama_scale.spec.run import RunSpec
    from llama_scale.train.engine import MicroBatch, Route
    from llama_scale.train.mixture_rows import Layout, MixtureRows
    from llama_scale.train.model import LlamaModel


class MixtureHead(nn.Module):
    """Hold p(a_i) and make losses of what the adapters say.

    ``logits`` (or the gate's parameters) are attached afterwards, as the plan lists them.

    Args:
        section: The spec's section.
        adapters: Names of the adapters that are mixed, a_1 to a_N.
        gate: The gate, for ``weights: gate``.
        tally: Where training steps add up responsibilities and task losses.
    """

    def __init__(self, section: MixtureSection, adapters: Sequence[str], gate: Gate | None, *, tally: Tally) -> None:
        super().__init__()
        self.section = section
        self.names = tuple(adapters)
        self.tally = tally
        if gate is not None:
            self.gate = gate

    def forward(
        self,
        log_probs: torch.Tensor | None,
        *,
        trunk: torch.Tensor | None,
        mask: torch.Tensor,
        documents: torch.Tensor | None,
        routes: Sequence[Route],
    ) -> torch.Tensor:
        """Return a summed loss in nats, a scalar.

        Args:
            log_probs: ``[N, M, S]`` log p_i of the labels: the loss is the mixture's negative log-likelihood. None:
                each row's adapter is known, and the loss is ``-log p(a_i)`` of it alone.
            trunk: ``[S, M, H]`` last hidden states of the bare base, for the gate.
            mask: ``[M, S]`` weight of each position in the loss.
            documents: ``[M, S]`` document of each position, or None: each row is one.
            routes: Adapters and tasks of the rows.
        """
        mask, weights = mask.float(), self.log_weights(trunk)
        given = torch.zeros(len(self.names), *mask.shape, device=mask.device) if log_probs is None else log_probs
        if self.section.weights == "posterior":
            units = math.document_units(given, weights, mask=mask, documents=documents)
        else:
            units = math.token_units(given, weights, mask=mask)
        if log_probs is None:
            return math.weight_loss(units, self._owners(routes, mask))
        self._count(units, routes, mask)
        if self.training and self.section.objective == "em":
            return math.expected_loss(units)
        return math.negative_log_likelihood(units)

    def log_weights(self, trunk: torch.Tensor | None) -> torch.Tensor:
        """Return log p(a_i): ``[N]``, or ``[N, M, S]`` of a gate."""
        if self.section.weights == "gate":
            assert trunk is not None
            scores = self.gate(trunk.detach())
            return torch.log_softmax(scores.float(), dim=-1).permute(2, 1, 0)
        return torch.log_softmax(self.get_parameter("logits").float(), dim=0)

    def next_log_weights(
        self, log_probs: torch.Tensor, *, trunk: torch.Tensor | None, documents: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the log weights, ``[N]`` or ``[N, M, S]``, with which the adapters predict each next token.

        Args:
            log_probs: ``[N, M, S]`` log p_i of the token that follows each position.
            trunk: See ``forward``.
            documents: See ``forward``.
        """
        weights = self.log_weights(trunk)
        if self.section.weights == "posterior":
            return math.prefix_log_weights(log_probs, weights, documents=documents)
        return weights

    def _owners(self, routes: Sequence[Route], mask: torch.Tensor) -> torch.Tensor:
        """Return the number of the adapter that each position belongs to, ``[M * S]``."""
        numbers = {name: number for number, name in enumerate(self.names)}
        owners = torch.zeros(mask.shape, dtype=torch.int64)
        for route in routes:
            assert route.adapter is not None
            owners[route.start : route.stop] = numbers[route.adapter]
        return owners.flatten().to(mask.device)

    def _count(self, units: math.Units, routes: Sequence[Route], mask: torch.Tensor) -> None:
        """Add up responsibilities and task losses of training, or of evaluation where only that has them."""
        if self.training or self.section.objective == "per_task":
            *shares, total = math.shares(units).unbind()
            for name, share in zip(self.names, shares, strict=True):
                self.tally.add(RESPONSIBILITY + name, share, total)
        if self.training:
            losses = math.unit_losses(units).detach().view(mask.shape)
            for route in routes:
                if route.task is not None:
                    rows = slice(route.start, route.stop)
                    self.tally.add(TASK + route.task, losses[rows].sum(), mask[rows].sum())


def make_head(spec: RunSpec, *, tally: Tally) -> MixtureHead:
    """Build the spec's mixture for the chunk that has the output layer, without parameters.

    Args:
        spec: The run.
        tally: The chunk's statistics.

    Raises:
        PluginError: The gate is missing or broken.
    """
    section, gate = spec.mixture, None
    assert section is not None
    names = mixed_adapters(spec.adapters, section)
    if section.weights == "gate":
        descriptor = discover.gate(section.gate or DEFAULT_GATE)
        options = discover.read_options(descriptor, section.gate_options)
        gate = discover.implementation(descriptor)(options, len(names))
    return MixtureHead(section, names, gate, tally=tally)


def mixture_loss(
    model: LlamaModel, hidden: torch.Tensor, batch: MicroBatch, *, mixture: MixtureRows, layout: Layout
) -> torch.Tensor:
    """Return the summed loss that a mixture adds to its rows' own, or has in its place.

    Args:
        model: The chunk with the output layer.
        hidden: Final hidden states ``[S, R, H]``, S of this rank if sequence parallel.
        batch: The micro-batch.
        mixture: The run's mixture.
        layout: The micro-batch's layout.
    """
    log_probs = None
    if mixture.all_adapters(training=model.training):
        log_probs = _log_probs(model, _adapted(hidden, layout, mixture), layout.take(batch["labels"]))
    return model.mixture(
        log_probs,
        trunk=_trunk(model, hidden, layout) if mixture.gated else None,
        mask=layout.take(batch["loss_mask"]),
        documents=layout.take(batch["documents"]) if "documents" in batch else None,
        routes=layout.routes,
    )


def mixture_log_probs(
    model: LlamaModel, hidden: torch.Tensor, batch: MicroBatch, *, mixture: MixtureRows, layout: Layout
) -> torch.Tensor:
    """Return the mixture's log-probabilities ``[M, S, V]`` of every next token; arguments as of ``mixture_loss``."""
    adapted = _adapted(hidden, layout, mixture)
    # What follows the last token is not known, and weighs nothing that is predicted here.
    log_probs = _log_probs(model, adapted, layout.take(batch["tokens"]).roll(-1, 1))
    weights = model.mixture.next_log_weights(
        log_probs,
        trunk=_trunk(model, hidden, layout) if mixture.gated else None,
        documents=layout.take(batch["documents"]) if "documents" in batch else None,
    )
    logits = model.whole_sequence(adapted) @ model.head_weight()[: model.rows.count].t()
    each = sharded_log_softmax(logits, model.rows).unflatten(1, (len(mixture.adapters), -1)).permute(1, 2, 0, 3)
    return math.mix(each, weights)


def _mixed_count(layout: Layout) -> int:
    return sum(stop - start for start, stop in layout.mixed)


def _adapted(hidden: torch.Tensor, layout: Layout, mixture: MixtureRows) -> torch.Tensor:
    """Return the adapters' rows ``[S, N * M, H]``, one adapter after the other."""
    count = _mixed_count(layout)
    stop = hidden.shape[1] - (count if mixture.gated else 0)
    others = hidden[:, stop - (len(mixture.adapters) - 1) * count : stop]
    if len(layout.mixed) == 1 and not layout.outside:
        return hidden[:, :stop]
    return torch.cat((layout.take(hidden, dim=1), others), dim=1)


def _trunk(model: LlamaModel, hidden: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Return the bare base's rows ``[S, M, H]``, which come last."""
    return model.whole_sequence(hidden[:, hidden.shape[1] - _mixed_count(layout) :].detach())


def _log_probs(model: LlamaModel, adapted: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return ``[N, M, S]`` log-probabilities of ``labels [M, S]`` by hidden states ``[S, N * M, H]``."""
    adapters, (count, length) = len(model.mixture.names), labels.shape
    flat = labels.transpose(0, 1).repeat(1, adapters).reshape(-1)
    whole = model.whole_sequence(adapted).flatten(0, 1)
    found = linear_log_probabilities(whole, model.head_weight(), labels=flat, rows=model.rows)
    return found.view(length, adapters, count).permute(1, 2, 0)
