from __future__ import annotations

import torch

from llama_scale.train.statistics import Tally


def test_tally_adds_sums_and_weights_in_fp64() -> None:
    tally = Tally()
    tally.add("task/a", torch.tensor(3.0, requires_grad=True), torch.tensor(2.0))
    tally.add("task/a", torch.tensor(1e-9), torch.tensor(1.0))
    tally.add("task/b", torch.tensor(0.0), torch.tensor(0.0))

    assert tally["task/a"].tolist() == [3.0 + float(torch.tensor(1e-9)), 3.0]
    assert tally["task/b"].tolist() == [0.0, 0.0]
    assert not tally["task/a"].requires_grad
