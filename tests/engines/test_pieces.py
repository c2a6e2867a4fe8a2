"""A rank's pieces: together they are every logical tensor once, and any layout goes on from another's."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch

from llama_scale.errors import CheckpointError
from llama_scale.layout.boxes import Box
from llama_scale.layout.parameters import iter_parameters
from tests.engines.harness import run_ranks
from tests.engines.specs import Case
from tests.engines.training import start, train_steps

State = dict[tuple[str, str], torch.Tensor]


class MemoryReader:
    """A checkpoint of whole tensors in memory."""

    def __init__(self, state: State) -> None:
        self.state = state

    def tensors(self, group: str) -> list[str]:
        return [name for g, name in self.state if g == group]

    def read(self, group: str, name: str, box: Box | None = None, out: torch.Tensor | None = None) -> torch.Tensor:
        if (group, name) not in self.state:
            raise CheckpointError(f"no {group}/{name}")
        whole = self.state[group, name]
        return whole[box.slices_within(Box.whole(tuple(whole.shape)))] if box else whole

    def read_range(self, group: str, name: str, box: Box, *, start: int, numel: int) -> torch.Tensor:
        return self.read(group, name, box).reshape(-1)[start : start + numel]


def assemble(ranks: list[list[Any]]) -> State:
    """Put primary pieces together; every element must come exactly once, and copies must be equal."""
    state: State = {}
    count: State = {}
    pieces = [piece for rank in ranks for piece in rank]
    for piece in pieces:
        key = (piece.group, piece.name)
        if key not in state:
            state[key] = torch.zeros(piece.global_shape, dtype=piece.tensor.dtype)
            count[key] = torch.zeros(piece.global_shape)
        if piece.primary:
            place = _place(state[key], piece)
            place[0][place[1]] = piece.tensor.reshape(-1)
            seen = _place(count[key], piece)
            seen[0][seen[1]] += 1
            _store(state[key], piece, place[0])
            _store(count[key], piece, seen[0])
    assert all(bool((c == 1).all()) for c in count.values()), "an element is missing or written twice"
    for piece in pieces:
        flat, part = _place(state[piece.group, piece.name], piece)
        assert torch.equal(flat[part], piece.tensor.reshape(-1)), f"copies of {piece.name} differ"
    return state


def _place(whole: torch.Tensor, piece: Any) -> tuple[torch.Tensor, slice]:
    flat = whole[piece.box.slices_within(Box.whole(tuple(whole.shape)))].reshape(-1).clone()
    first = piece.flat_start or 0
    return flat, slice(first, first + piece.tensor.numel())


def _store(whole: torch.Tensor, piece: Any, flat: torch.Tensor) -> None:
    whole[piece.box.slices_within(Box.whole(tuple(whole.shape)))] = flat.view(piece.box.shape)


def pieces_of(engine: Any) -> list[Any]:
    return [
        replace(piece, tensor=piece.tensor.clone())
        for pieces in (engine.model_pieces(), engine.optimizer_pieces())
        for piece in pieces
    ]


def initial(case: Case) -> list[Any]:
    return pieces_of(start(case))


def train_and_save(case: Case, steps: int) -> tuple[list[tuple[float, float]], list[Any]]:
    engine = start(case)
    return train_steps(engine, case, steps=steps), pieces_of(engine)


def resume(case: Case, state: State, done: int, steps: int) -> tuple[list[Any], list[tuple[float, float]]]:
    engine = start(replace(case, seed=99))
    engine.load(MemoryReader(state), optimizer=True, step=done)
    assert engine.step == done
    return pieces_of(engine), train_steps(engine, case, steps=steps, first=done)


LAYOUTS = {
    "single": Case(),
    "tp2-pp2": Case(tp=2, pp=2),
    "dp4-distopt": Case(dp=4, distributed_optimizer=True),
    "tp2-pp2-dp2-distopt": Case(tp=2, pp=2, dp=2, distributed_optimizer=True, sequence=True),
    "pp2-vp2": Case(pp=2, vp=2, overlap_p2p=True),
    "dp2-overlap": Case(dp=2, distributed_optimizer=True, overlap_grad_reduce=True, overlap_param_gather=True),
    "tied-pp2-dp2-distopt": Case(pp=2, dp=2, distributed_optimizer=True, shape={"tie_word_embeddings": True}),
    "tp4-empty-rank": Case(
        tp=4,
        distributed_optimizer=True,
        shape={"num_heads": 8, "num_kv_heads": 4, "vocab_size": 33},
        vocab_pad_multiple=16,
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_initial_weights_do_not_depend_on_layout(name: str) -> None:
    case = LAYOUTS[name]

    state = assemble(run_ranks(case.world_size, initial, case))

    expected = assemble(run_ranks(1, initial, Case(shape=case.shape, vocab_pad_multiple=3)))
    table = {p.name: p.shape for p in iter_parameters(case.plan().shape)}
    assert {n: tuple(t.shape) for (g, n), t in state.items() if g == "model"} == table
    assert {g for g, _ in state} == {"model", "exp_avg", "exp_avg_sq"}
    assert all(torch.equal(state[key], expected[key]) for key in expected)


@functools.cache
def straight() -> list[tuple[float, float]]:
    curve: list[tuple[float, float]] = run_ranks(1, train_and_save, Case(), 6)[0][0]
    return curve


HOPS = [
    ("single", "tp2-pp2-dp2-distopt"),
    ("tp2-pp2-dp2-distopt", "pp2-vp2"),
    ("pp2-vp2", "dp4-distopt"),
    ("dp4-distopt", "tp2-pp2"),
    ("tp2-pp2", "single"),
    ("dp2-overlap", "tp2-pp2"),
]


@pytest.mark.parametrize(("before", "after"), HOPS, ids=lambda x: x)
def test_training_goes_on_in_another_layout(before: str, after: str) -> None:
    first = run_ranks(LAYOUTS[before].world_size, train_and_save, LAYOUTS[before], 3)
    state = assemble([pieces for _, pieces in first])

    ranks = run_ranks(LAYOUTS[after].world_size, resume, LAYOUTS[after], state, 3, 3)

    again = assemble([pieces for pieces, _ in ranks])
    assert all(torch.equal(again[key], value) for key, value in state.items()), "state changed by resharding"
    for (loss, norm), (expected, expected_norm) in zip(first[0][0] + ranks[0][1], straight(), strict=True):
        assert loss == pytest.approx(expected, rel=1e-5)
        assert norm == pytest.approx(expected_norm, rel=5e-5)


def test_bf16_state_has_masters_and_moves_between_layouts_and_precisions() -> None:
    case = Case(tp=2, dp=2, distributed_optimizer=True, compute="bf16")
    ranks = run_ranks(4, train_and_save, case, 3)
    state = assemble([pieces for _, pieces in ranks])
    assert {g for g, _ in state} == {"model", "master", "exp_avg", "exp_avg_sq"}
    name = "decoder.layers.0.mlp.linear_fc1.weight"
    assert torch.equal(state["master", name].bfloat16(), state["model", name])
    assert not torch.equal(state["master", name], state["model", name].float())

    plain = run_ranks(2, resume, Case(pp=2, compute="bf16"), state, 3, 1)
    again = assemble([pieces for pieces, _ in plain])
    assert all(torch.equal(again[key], value) for key, value in state.items())

    wide = run_ranks(1, resume, Case(), state, 3, 1)
    again = assemble([pieces for pieces, _ in wide])
    assert torch.equal(again["model", name], state["master", name])


def missing(case: Case, state: State) -> str:
    engine = start(case)
    try:
        engine.load(MemoryReader(state), optimizer=True, step=1)
    except CheckpointError as error:
        return str(error)
    return ""


def test_missing_moment_is_refused() -> None:
    state = assemble(run_ranks(1, initial, Case()))
    name = "decoder.final_layernorm.weight"
    del state["exp_avg", name]

    assert run_ranks(1, missing, Case(), state) == [f"no exp_avg/{name}"]
