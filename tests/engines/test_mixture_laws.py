"""A mixture's distribution in the model itself, over a vocabulary that tensor parallel ranks share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from llama_scale.layout.boxes import Box
from llama_scale.train.engine import Route
from tests.engines.harness import join, run_ranks
from tests.engines.specs import Case
from tests.engines.test_mixture import ADAPTERS, mixture_case
from tests.engines.training import micro_batches

SHAPE = {"vocab_size": 33, "num_heads": 8, "num_kv_heads": 4}
"""With tensor: 4 and padding to 64, two ranks hold nothing but padding."""


def distribution(case: Case, changes: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return what a model says of two rows: the mixture, its summed loss, and each adapter alone.

    Args:
        case: One stage.
        changes: How weights are set before: ``logits``, and ``same`` to give all adapters the first one's weights.
    """
    from llama_scale.train.model import build_chunks
    from llama_scale.train.names import logical_parameters

    plan = case.plan()
    coordinates = join(plan)
    [chunk] = build_chunks(case.spec(), plan, coordinates)
    chunk.eval()
    with torch.no_grad():
        for local in logical_parameters([chunk], plan, coordinates):
            if local.parameter.owner != "base" and local.parameter.init == "zeros":
                whole = torch.randn(local.parameter.shape, generator=torch.Generator().manual_seed(len(local.name)))
                local.view().copy_(whole[local.box.slices_within(Box.whole(local.parameter.shape))])
        if "logits" in changes:
            chunk.mixture.get_parameter("logits").copy_(torch.tensor(changes["logits"]))
        if changes.get("same"):
            for layer in chunk.decoder.layers:
                if layer.hooks is not None:
                    first, *others = layer.adapters.children()
                    for other in others:
                        other.load_state_dict(first.state_dict())
        batch = micro_batches(case, step=0, dp_rank=0)[0]
        found = {
            "mixture": chunk.gather_logits(chunk(batch, with_loss=False).contiguous()),
            "loss": chunk(batch),
        }
        mixture, chunk.mixture_rows = chunk.mixture_rows, None
        for adapter in case.adapters:
            batch["routes"] = (Route(adapter=adapter["name"], task=None, start=0, stop=case.micro),)
            logits = chunk.gather_logits(chunk(batch, with_loss=False).contiguous())
            found[adapter["name"]] = torch.log_softmax(logits.float(), -1)
        chunk.mixture_rows = mixture
    return found


def say(case: Case, **changes: Any) -> list[dict[str, torch.Tensor]]:
    return run_ranks(case.world_size, distribution, case, changes)


@pytest.mark.parametrize("weights", ["prior", "posterior", "gate"])
def test_probabilities_sum_to_one_and_do_not_depend_on_the_layout(weights: str) -> None:
    case = mixture_case(weights, shape=SHAPE, vocab_pad_multiple=16, isolate_documents=True)
    [one] = say(case)
    two = say(replace(case, tp=2, sequence=True))

    assert one["mixture"].shape == (2, 16, 33)
    torch.testing.assert_close(one["mixture"].exp().sum(-1), torch.ones(2, 16), rtol=1e-5, atol=1e-5)
    labels = micro_batches(case, step=0, dp_rank=0)[0]
    chosen = one["mixture"].gather(2, labels["labels"].unsqueeze(2)).squeeze(2)
    if weights != "posterior":  # whose evidence leaves out what the loss masks
        torch.testing.assert_close(-(chosen * labels["loss_mask"]).sum(), one["loss"], rtol=1e-5, atol=1e-5)
    assert (one["mixture"] - one["law"]).abs().max() > 0.1 < (one["mixture"] - one["news.v1"]).abs().max()
    for rank in two:
        torch.testing.assert_close(rank["mixture"], one["mixture"], rtol=0, atol=2e-5)
        torch.testing.assert_close(rank["loss"], one["loss"], rtol=1e-5, atol=1e-5)


def test_one_adapter_and_a_one_hot_prior_are_that_adapter_and_equal_adapters_are_one() -> None:
    alone = mixture_case(adapters=ADAPTERS[:1])
    hot = mixture_case("posterior")
    twins = mixture_case(adapters=(ADAPTERS[0], {**ADAPTERS[0], "name": "twin"}))

    for found, name in (
        (say(alone)[0], "news.v1"),
        (say(hot, logits=[-1e4, 0.0])[0], "law"),
        (say(twins, same=True)[0], "news.v1"),
    ):
        torch.testing.assert_close(found["mixture"], found[name], rtol=1e-5, atol=1e-5)


def test_ranks_of_padding_alone_take_part() -> None:
    case = mixture_case("posterior", shape=SHAPE, vocab_pad_multiple=16)
    [one] = say(case)
    for rank in say(replace(case, tp=4)):
        torch.testing.assert_close(rank["mixture"], one["mixture"], rtol=0, atol=2e-5)
