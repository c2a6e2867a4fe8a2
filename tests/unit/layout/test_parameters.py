from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_scale.layout.boxes import Box
from llama_scale.layout.parameters import EMBEDDING, HEAD, iter_parameters, local_box, padded_vocab_size
from llama_scale.spec.model import ModelShape


def _shape(*, vocab: int = 61, tied: bool = False) -> ModelShape:
    return ModelShape(
        hidden_size=32,
        ffn_hidden_size=48,
        num_layers=3,
        num_heads=8,
        num_kv_heads=4,
        head_dim=12,
        vocab_size=vocab,
        tie_word_embeddings=tied,
    )


@given(
    vocab=st.integers(1, 300), multiple=st.sampled_from([1, 8, 128]), tp=st.sampled_from([1, 2, 4]), tied=st.booleans()
)
def test_tensor_ranks_cut_every_parameter_without_gap_or_overlap(
    vocab: int, multiple: int, tp: int, tied: bool
) -> None:
    for parameter in iter_parameters(_shape(vocab=vocab, tied=tied)):
        boxes = [local_box(parameter, tp_rank=r, tp_size=tp, vocab_pad_multiple=multiple) for r in range(tp)]
        if parameter.tp_dim is None:
            assert boxes == [Box.whole(parameter.shape)] * tp
            continue
        assert sum(box.numel for box in boxes) == parameter.numel
        assert all(a.intersect(b) is None for i, a in enumerate(boxes) for b in boxes[:i])
        assert all(box.numel == 0 or box.intersect(Box.whole(parameter.shape)) == box for box in boxes)


@given(vocab=st.integers(1, 10**6), multiple=st.integers(1, 256), tp=st.integers(1, 16))
def test_padded_vocabulary_is_the_next_multiple(vocab: int, multiple: int, tp: int) -> None:
    padded = padded_vocab_size(vocab, tp_size=tp, multiple=multiple)

    assert padded % (multiple * tp) == 0
    assert vocab <= padded < vocab + multiple * tp


def test_rank_of_pure_padding_holds_no_rows() -> None:
    embedding = next(iter(iter_parameters(_shape(vocab=5))))

    box = local_box(embedding, tp_rank=1, tp_size=2, vocab_pad_multiple=8)

    assert box == Box((5, 0), (0, 32))


@pytest.mark.parametrize(("tied", "tables"), [(False, [EMBEDDING, HEAD]), (True, [EMBEDDING])])
def test_names_are_unique_and_a_tied_head_is_no_parameter(tied: bool, tables: list[str]) -> None:
    parameters = list(iter_parameters(_shape(tied=tied)))

    names = [parameter.name for parameter in parameters]
    assert len(set(names)) == len(names) == 3 * 6 + 1 + len(tables)
    assert [p.name for p in parameters if p.place in ("embedding", "head")] == tables
