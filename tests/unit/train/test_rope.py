from __future__ import annotations

import pytest
import torch

from llama_scale.train.rope import rotation, split_and_rotate


def test_rotation_has_one_row_for_equal_positions_and_all_rows_otherwise() -> None:
    inverse = torch.tensor([1.0, 0.1])
    equal = torch.arange(5).expand(3, 5)
    different = torch.stack((torch.arange(5), torch.tensor([0, 1, 0, 1, 2])))

    assert rotation(inverse, equal, dtype=torch.float32).shape == (2, 5, 1, 2)
    rows = rotation(inverse, different, dtype=torch.float32)
    assert rows.shape == (2, 5, 2, 2)
    torch.testing.assert_close(rows[0, 2, 1], torch.ones(2))


@pytest.mark.parametrize("batch_positions", [1, 2])
def test_split_and_rotate_gradient(batch_positions: int) -> None:
    torch.manual_seed(0)
    s, b, g, q, d = 3, 2, 2, 2, 4
    mixed = torch.randn(s, b, g, q + 2, d, dtype=torch.float64, requires_grad=True)
    positions = torch.arange(s).expand(2, s)[:batch_positions] + torch.tensor([[0], [7]])[:batch_positions]
    angles = rotation(torch.tensor([1.0, 0.3]), positions, dtype=torch.float64)

    assert torch.autograd.gradcheck(lambda x: split_and_rotate(x, angles), (mixed,))
    query, key, value = split_and_rotate(mixed, angles)
    assert query.shape == (b, g * q, s, d)
    assert key.shape == value.shape == (b, g, s, d)
    torch.testing.assert_close(value[1, 0, 2], mixed[2, 1, 0, q + 1])
    # A rotation keeps lengths; at position 0 of the first row it is none.
    torch.testing.assert_close(query.norm(dim=-1)[1, 3], mixed[:, 1, 1, 1].norm(dim=-1))
    torch.testing.assert_close(key[0, 1, 0], mixed[0, 0, 1, q])
