from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llama_scale.data.task_tokenizer import TaskTokenizer
from llama_scale.errors import DataError
from llama_scale.extensions.task import TaskRows
from llama_scale.tasks.ranking import rank_scores
from llama_scale.tasks.semantic_search_module import SemanticSearch
from tests.unit.tasks.conftest import MakeTask, example
from tests.unit.tasks.models import Tiny

SHORT = {"max_query_tokens": 8, "max_document_tokens": 12}


def corpus(folder: Path, count: int = 9) -> str:
    path = folder / "corpus.jsonl"
    path.write_text("".join(json.dumps({"doc_id": f"d{i}", "text": f"text {i}"}) + "\n" for i in range(count)))
    return str(path)


def test_a_row_is_query_positive_and_negatives_as_segments(make_task: MakeTask, tokenizer: TaskTokenizer) -> None:
    task = make_task("semantic_search", **SHORT, negatives_field="negatives", hard_negatives=2, query_prefix="q: ")

    [feature] = task.encode(example(query="find", positive="a text", negatives=["b", "c", "d"]))

    assert feature.segments is not None
    parts = [tokenizer.decode(feature.tokens[feature.segments == k]) for k in range(4)]
    assert parts == ["q: find", "a text", "b", "c"]
    ends = [feature.tokens[feature.segments == k][-1] for k in range(4)]
    assert ends == [tokenizer.eos_id] * 4
    assert feature.weights.sum() == 1
    assert len(set(feature.extra["documents"].tolist())) == 3
    assert feature.extra["positives"].tolist()[1:] == [0] * 7


def test_missing_negatives_and_long_texts(make_task: MakeTask) -> None:
    task = make_task("semantic_search", **SHORT, negatives_field="negatives", hard_negatives=2)

    [feature] = task.encode(example(query="find " * 20, positive="word " * 30, negatives=None))

    assert feature.segments is not None
    assert np.bincount(feature.segments).tolist() == [8, 12]
    assert feature.cut > 20
    assert feature.extra["documents"][1:].tolist() == [0, 0]


def test_each_positive_is_a_feature_and_all_are_known(make_task: MakeTask) -> None:
    features = make_task("semantic_search").encode(example(query="q", positive=["a", "b"]))

    assert len(features) == 2
    assert features[0].extra["positives"].tolist() == features[1].extra["positives"].tolist()
    assert {int(f.extra["documents"][0]) for f in features} == set(features[0].extra["positives"][:2].tolist())


def test_documents_of_a_corpus_go_by_their_names(make_task: MakeTask, tmp_path: Path) -> None:
    task = make_task("semantic_search", corpus=corpus(tmp_path), positive_field="doc")

    task.options.check(example(query="q", doc="d3"))
    assert task.options.positives(example(query="q", doc=["d3"])) == [("d3", "text 3")]
    with pytest.raises(DataError, match=r"rows\.jsonl:7: 'doc' names the document 'x', which is not in the corpus"):
        task.options.check(example(query="q", doc="x"))
    assert task.options.files()[-1].endswith("corpus.jsonl")


def test_faulty_corpora_and_options_are_named(make_task: MakeTask, tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"doc_id": "a", "text": "x"}\n{"doc_id": "a", "text": "y"}\n')
    with pytest.raises(DataError, match=r"c\.jsonl:2: the identifier 'a' \(doc_id\) is used already"):
        make_task("semantic_search", corpus=str(path)).options.check(example(query="q", positive="a"))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match=r"empty\.jsonl holds no documents"):
        make_task("semantic_search", corpus=str(tmp_path / "empty.jsonl")).options.check(
            example(query="q", positive="a")
        )
    faults = list(make_task("semantic_search", hard_negatives=1).options.faults(256))
    assert "max_query_tokens=64 and 2 x max_document_tokens=192 are 448 tokens" in faults[0]
    assert "hard_negatives=1, but negatives_field names no field" in faults[1]


class _Replicas:
    """Two replicas in one process: this one is the second."""

    def __init__(self, others: list[torch.Tensor]) -> None:
        self.parameters: dict[str, Any] = {}
        self.others = others
        self.own_offset = len(others[0]) if others else 0

    def gather_replicas(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.others.pop(0), x]) if self.others else x


def rows_of(task: SemanticSearch, features: list[Any], length: int) -> TaskRows:
    documents = torch.full((len(features), length), -1)
    weights = torch.zeros(len(features), length)
    for place, feature in enumerate(features):
        documents[place, : len(feature.tokens)] = torch.from_numpy(feature.segments)
        weights[place, 0] = 1.0
    extra = {name: torch.from_numpy(np.stack([f.extra[name] for f in features])) for name in features[0].extra}
    return TaskRows(tokens=documents, weights=weights, documents=documents, extra=extra)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_infonce_over_all_replicas_leaves_other_positives_out(make_task: MakeTask, pooling: str) -> None:
    task = make_task("semantic_search", **SHORT, pooling=pooling, temperature=0.1, matryoshka=[4])
    assert isinstance(task, SemanticSearch)
    features = [
        f
        for q, p in (("one", ["a", "b"]), ("two", ["c"]), ("three", ["c"]))
        for f in task.encode(example(query=q, positive=p))
    ]
    rows = rows_of(task, features, 30)
    hidden = torch.randn(30, 4, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    other = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(1))
    names = torch.tensor([[77], [0]])  # the second is no document

    loss = task.loss(hidden, rows, _Replicas([other, names]))
    loss.backward()

    def pooled(place: int, segment: int) -> torch.Tensor:
        states = hidden[rows.documents[place] == segment, place]
        return states.mean(0) if pooling == "mean" else states[-1]

    # a b c c: a and b belong to the first two queries, c to the last two
    candidates = [other[0, 0], *(pooled(place, 1) for place in range(4))]
    allowed = [[0, 1, 3, 4], [0, 2, 3, 4], [0, 1, 2, 3], [0, 1, 2, 4]]
    expected = torch.zeros(())
    for size in (4, 8):
        for place, places in enumerate(allowed):
            query = torch.nn.functional.normalize(pooled(place, 0)[:size], dim=0)
            logits = torch.stack([query @ torch.nn.functional.normalize(candidates[i][:size], dim=0) for i in places])
            expected = expected - (logits / 0.1).log_softmax(0)[places.index(place + 1)] / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()


def test_a_replica_without_rows_takes_part(make_task: MakeTask) -> None:
    task = make_task("semantic_search", **SHORT)
    assert isinstance(task, SemanticSearch)
    hidden = torch.zeros(30, 0, 8, requires_grad=True)
    rows = TaskRows(
        tokens=torch.zeros(0, 30, dtype=torch.long),
        weights=torch.zeros(0, 30),
        documents=torch.zeros(0, 30, dtype=torch.long),
        extra={"documents": torch.zeros(0, 1, dtype=torch.long), "positives": torch.zeros(0, 8, dtype=torch.long)},
    )

    loss = task.loss(hidden, rows, _Replicas([torch.randn(2, 1, 8), torch.tensor([[1], [2]])]))
    loss.backward()

    assert loss.item() == 0.0


def test_the_right_document_is_found(make_task: MakeTask, tokenizer: TaskTokenizer, tmp_path: Path) -> None:
    task = make_task(
        "semantic_search", corpus=corpus(tmp_path), positive_field="doc", matryoshka=[16], recall_at=[1, 5]
    )
    model = Tiny(tokenizer.vocab_size, tokenizer.eos_id)
    rows = [example(query=f"text {i}", doc=f"d{i}") for i in (2, 5)]

    outcomes = list(task.predict(model, rows))

    assert [o.prediction[0] for o in outcomes] == ["d2", "d5"]  # equal texts have equal embeddings
    assert len(outcomes[0].prediction) == 9
    assert outcomes[0].scores == dict.fromkeys(
        ("recall@1", "recall@5", "mrr", "ndcg@10", "recall@1_dim16", "recall@5_dim16", "mrr_dim16", "ndcg@10_dim16"),
        1.0,
    )


def test_distractors_are_the_same_ones_each_time(make_task: MakeTask, tokenizer: TaskTokenizer, tmp_path: Path) -> None:
    options = {"corpus": corpus(tmp_path), "positive_field": "doc", "distractors": 3}
    model = Tiny(tokenizer.vocab_size, tokenizer.eos_id)

    first, second = (
        next(iter(make_task("semantic_search", **options).predict(model, [example(query="text 2", doc="d2")])))
        for _ in range(2)
    )

    assert first.prediction == second.prediction
    assert len(first.prediction) == 4


def test_without_a_corpus_the_examples_documents_are_ranked(make_task: MakeTask, tokenizer: TaskTokenizer) -> None:
    task = make_task("semantic_search", negatives_field="negatives", hard_negatives=1)
    rows = [example(query="abc", positive="abc", negatives=["xyz"]), example(query="def", positive="def")]

    outcomes = list(task.predict(Tiny(tokenizer.vocab_size, tokenizer.eos_id), rows))

    assert outcomes[0].prediction[0] == "abc"
    assert sorted(outcomes[0].prediction) == ["abc", "def", "xyz"]


def test_scores_of_rankings() -> None:
    [found] = rank_scores([["b", "d"]], [{"a": 3.0, "b": 2.0, "c": 1.0}], (1, 3))

    assert found["recall@1"] == 0.0
    assert found["recall@3"] == 0.5
    assert found["mrr"] == 0.5
    ideal = 1 + 1 / np.log2(3)
    assert found["ndcg@10"] == pytest.approx((1 / np.log2(3)) / ideal)
