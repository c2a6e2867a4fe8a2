from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_scale.data.windows import split_bounds
from llama_scale.errors import DataError
from llama_scale.plan.run_plan import BatchPlan
from llama_scale.spec.data import IndexedData, Split
from llama_scale.train.data import Samples, replica_samples
from tests.unit.train.token_files import write_token_file


def section(*paths: str, seq_length: int = 8, weights: tuple[float, ...] = (), **changes: Any) -> IndexedData:
    weights = weights or (1.0,) * len(paths)
    blend = [{"path": path, "weight": weight} for path, weight in zip(paths, weights, strict=True)]
    values = {"kind": "indexed", "blend": tuple(blend), "seq_length": seq_length, **changes}
    values.setdefault("split", {"train": 1.0, "validation": 0.0, "test": 0.0})
    return IndexedData.model_validate(values)


def numbered(tmp_path: Path, *, documents: int = 12, length: int = 7, name: str = "tokens") -> str:
    """Write documents whose tokens are all different: token t of document d is 100 d + t."""
    return write_token_file(tmp_path / name, [100 * d + np.arange(length) for d in range(documents)])


def test_samples_are_a_pure_function_of_seed_and_number(tmp_path: Path) -> None:
    data = section(numbered(tmp_path))
    one = Samples(data, split="train", seed=5, vocab_size=10000)
    two = Samples(data, split="train", seed=5, vocab_size=10000)
    other = Samples(data, split="train", seed=6, vocab_size=10000)
    order = [37, 0, 12, 37, 5]
    first = {k: two[k].tokens.tolist() for k in reversed(order)}
    assert [one[k].tokens.tolist() for k in order] == [first[k] for k in order]
    assert [one[k].tokens.tolist() for k in range(10)] != [other[k].tokens.tolist() for k in range(10)]


def test_first_samples_of_a_seed_never_change(tmp_path: Path) -> None:
    samples = Samples(section(numbered(tmp_path), seq_length=5), split="train", seed=5, vocab_size=10000)
    # Fixed for ever: a run that is resumed with a newer version must read on where it was.
    assert [samples[k].tokens.tolist() for k in (0, 1, 17)] == GOLDEN


GOLDEN = [
    [500, 501, 502, 503, 504, 505],
    [206, 1000, 1001, 1002, 1003, 1004],
    [703, 704, 705, 706, 300, 301],
]


def test_an_epoch_predicts_every_token_once_and_keeps_documents_whole(tmp_path: Path) -> None:
    documents, length, seq = 12, 7, 8
    samples = Samples(section(numbered(tmp_path), seq_length=seq), split="train", seed=1, vocab_size=10000)
    windows = (documents * length - 1) // seq
    for epoch in range(3):
        labels: Counter[int] = Counter()
        for k in range(epoch * windows, (epoch + 1) * windows):
            tokens = samples[k].tokens
            assert tokens.shape == (seq + 1,)
            labels.update(tokens[1:].tolist())
            for a, b in pairwise(tokens):
                # The next token of the document, or after its last one the first of another.
                assert b == a + 1 if a % 100 < length - 1 else b % 100 == 0
        assert set(labels.values()) == {1}
        assert len(labels) == windows * seq


def test_epochs_and_windows_come_in_different_orders(tmp_path: Path) -> None:
    samples = Samples(section(numbered(tmp_path)), split="train", seed=1, vocab_size=10000)
    windows = 83 // 8
    one = [samples[k].tokens.tolist() for k in range(windows)]
    two = [samples[k].tokens.tolist() for k in range(windows, 2 * windows)]
    assert one != two
    starts = [row[0] for row in one]
    assert starts != sorted(starts)


@given(
    dp=st.integers(1, 4),
    micro=st.integers(1, 3),
    accumulation=st.integers(1, 4),
    first=st.integers(0, 10**9),
)
def test_a_step_reads_the_same_samples_at_every_layout(dp: int, micro: int, accumulation: int, first: int) -> None:
    total = dp * micro * accumulation
    batch = BatchPlan(global_batch=total, micro_batch=micro, accumulation=accumulation, seq_length=8)
    read = [k for rank in range(dp) for part in replica_samples(first, batch, rank, dp) for k in part]
    assert sorted(read) == list(range(first, first + total))


def test_replica_reads_the_documented_numbers() -> None:
    batch = BatchPlan(global_batch=12, micro_batch=2, accumulation=3, seq_length=8)
    assert [list(part) for part in replica_samples(100, batch, 1, 2)] == [[102, 103], [106, 107], [110, 111]]


def test_micro_batch_shifts_labels_by_one(tmp_path: Path) -> None:
    samples = Samples(section(numbered(tmp_path)), split="train", seed=1, vocab_size=10000)
    batch = samples.micro_batch([3, 4])
    assert batch["tokens"].shape == batch["labels"].shape == (2, 8)
    assert batch["tokens"][:, 1:].equal(batch["labels"][:, :-1])
    assert batch["loss_mask"].eq(1).all()
    assert batch["position_ids"].tolist() == [list(range(8))] * 2
    assert "documents" not in batch


def test_isolated_documents_restart_positions_and_mask_their_borders(tmp_path: Path) -> None:
    data = section(numbered(tmp_path, length=5), isolate_documents=True)
    batch = Samples(data, split="train", seed=1, vocab_size=10000).micro_batch(range(6))
    tokens, labels = batch["tokens"].numpy(), batch["labels"].numpy()
    documents, positions = batch["documents"].numpy(), batch["position_ids"].numpy()
    for row in range(6):
        assert documents[row, 0] == positions[row, 0] == 0
        for i in range(8):
            crosses = labels[row, i] // 100 != tokens[row, i] // 100
            assert batch["loss_mask"][row, i] == (0.0 if crosses else 1.0)
            if i:
                same = tokens[row, i] // 100 == tokens[row, i - 1] // 100
                assert documents[row, i] - documents[row, i - 1] == (0 if same else 1)
                assert positions[row, i] == (positions[row, i - 1] + 1 if same else 0)


def test_blend_takes_from_every_file_by_weight(tmp_path: Path) -> None:
    one = write_token_file(tmp_path / "one", [np.full(50, 1)] * 4)
    two = write_token_file(tmp_path / "two", [np.full(50, 2)] * 4)
    samples = Samples(section(one, two, weights=(3.0, 1.0)), split="train", seed=1, vocab_size=3)
    assert Counter(int(samples[k].tokens[0]) for k in range(400)) == {1: 300, 2: 100}


def test_splits_hold_different_documents(tmp_path: Path) -> None:
    data = section(numbered(tmp_path), split={"train": 6.0, "validation": 3.0, "test": 3.0})
    seen = {}
    for name in ("train", "validation", "test"):
        samples = Samples(data, split=name, seed=1, vocab_size=10000)  # type: ignore[arg-type]
        seen[name] = {int(token) // 100 for k in range(40) for token in samples[k].tokens}
    assert seen == {"train": set(range(6)), "validation": {6, 7, 8}, "test": {9, 10, 11}}


def test_empty_documents_are_passed_over(tmp_path: Path) -> None:
    prefix = write_token_file(tmp_path / "t", [[], [1, 2, 3, 4], [], [], [5, 6, 7, 8], []])
    samples = Samples(section(prefix, seq_length=3), split="train", seed=1, vocab_size=9)
    assert {len(samples[k].tokens) for k in range(20)} == {4}


def test_split_without_documents_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of its 3 documents falls into the validation split \(.* 1 of 100"):
        split_bounds(Split().sizes, "validation", documents=3, prefix="tokens")


def test_fewer_tokens_than_one_sample_are_refused(tmp_path: Path) -> None:
    prefix = write_token_file(tmp_path / "t", [[1, 2, 3]])
    with pytest.raises(DataError, match="its train split holds 3 tokens in 1 documents, fewer than the 9 of"):
        Samples(section(prefix), split="train", seed=1, vocab_size=9)


def test_token_outside_the_vocabulary_is_refused_when_read(tmp_path: Path) -> None:
    samples = Samples(section(numbered(tmp_path)), split="train", seed=1, vocab_size=500)
    with pytest.raises(DataError, match=r"tokens\.bin holds token id \d+, but model\.vocab_size=500 allows 0 to 499"):
        for k in range(10):
            samples[k]


def test_order_is_the_files_own_whatever_its_integer_type(tmp_path: Path) -> None:
    documents = [100 * d + np.arange(7) for d in range(12)]
    narrow = write_token_file(tmp_path / "a", documents, code=8)
    wide = write_token_file(tmp_path / "b", documents, code=4)
    rows = [Samples(section(p), split="train", seed=3, vocab_size=10000)[9].tokens.tolist() for p in (narrow, wide)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(("micro", "accumulation", "dp"), [(1, 1, 1), (4, 1, 1), (3, 2, 2), (1, 2, 5), (50, 1, 1)])
def test_evaluation_counts_each_sample_once(tmp_path: Path, micro: int, accumulation: int, dp: int) -> None:
    files = [numbered(tmp_path, documents=n, name=f"f{n}") for n in (12, 3)]
    data = section(*files, weights=(1.0, 4.0), isolate_documents=True)
    samples = Samples(data, split="train", seed=1, vocab_size=10000)
    batch = BatchPlan(
        global_batch=micro * accumulation * dp, micro_batch=micro, accumulation=accumulation, seq_length=8
    )
    everything = sorted(
        samples._read(part, k).tokens[1:].tolist() for part, n in ((0, 83 // 8), (1, 20 // 8)) for k in range(n)
    )

    for limit in (5, 1000):
        found = []
        for d in range(dp):
            for micros in samples.evaluation(limit, batch=batch, dp_rank=d, dp_size=dp):
                assert len(micros) == accumulation
                for one in micros:
                    assert one["tokens"].shape == one["documents"].shape == (micro, 8)
                    found += [
                        row.tolist() for row, mask in zip(one["labels"], one["loss_mask"], strict=True) if mask.any()
                    ]
        if limit == 5:
            assert sorted(found) == sorted(samples._read(*row).tokens[1:].tolist() for row in samples._once(5))
        else:
            assert sorted(found) == everything
    assert len(samples) == len(everything) == 12
