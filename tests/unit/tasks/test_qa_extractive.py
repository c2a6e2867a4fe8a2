from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from llama_scale.data.task_tokenizer import TaskTokenizer
from llama_scale.errors import DataError
from llama_scale.extensions.task import TaskRows
from llama_scale.tasks.qa_extractive_module import QaExtractive
from llama_scale.tasks.text_scores import exact_match, normalize_answer, squad, token_f1
from tests.unit.tasks.conftest import MakeTask, example
from tests.unit.tasks.models import Tiny

CONTEXT = " ".join(f"The {word} of town {i} is {i * 37}." for i in range(30) for word in ("mayor", "river"))
SMALL = {"stride": 16, "max_question_tokens": 24}


def row(answer: str = "1073", **more: Any) -> Any:
    return example(question="What is the river of town 29?", context=CONTEXT, answer=answer, **more)


def test_windows_overlap_and_cover_the_context(make_task: MakeTask) -> None:
    task = make_task("qa_extractive", **SMALL)
    assert isinstance(task, QaExtractive)

    windows = task.windows(row())

    assert len(windows) > 3
    assert windows[0].offsets[0][0] == 0
    assert windows[-1].offsets[-1][1] == len(CONTEXT)
    for before, after in itertools.pairwise(windows):
        assert before.offsets[-16:] == after.offsets[:16]
        assert len(before.tokens) == 96
    assert all(window.tokens[-1] == task.context.tokenizer.eos_id for window in windows)


def test_targets_are_the_answers_tokens_or_the_end(make_task: MakeTask, tokenizer: TaskTokenizer) -> None:
    task = make_task("qa_extractive", **SMALL)
    place = CONTEXT.rindex("1073")

    features = task.encode(row(answer_start=place))

    assert not task.packable
    found = []
    for feature in features:
        start, end = feature.extra["span"]
        first, count = feature.extra["context"]
        assert feature.weights.sum() == 1
        if start == first + count:
            assert end == start
            assert feature.tokens[start] == tokenizer.eos_id
        else:
            found.append(tokenizer.decode(feature.tokens[start : end + 1]).strip(" ."))
    assert found
    assert set(found) == {"1073"}


@pytest.mark.parametrize(
    ("answer", "more", "message"),
    [
        ("9999", {}, r"rows\.jsonl:7: the answer '9999' is not in its context"),
        (
            "The mayor",
            {"answer_start": 1},
            "does not begin at character answer_start=1, where 'he mayor ' stands; it is at 0",
        ),
        ("The mayor", {"answer_start": "0"}, "answer_start is '0', and it must be an integer"),
        ("The mayor", {"answer_start": [0, 5]}, "1 answers, but 2 values of answer_start"),
        ("", {}, "has no answer; set unanswerable: true"),
    ],
)
def test_answers_must_be_in_their_context(make_task: MakeTask, answer: str, more: dict[str, Any], message: str) -> None:
    task = make_task("qa_extractive", **SMALL)

    with pytest.raises(DataError, match=message):
        task.options.check(row(answer, **more))


def test_squads_nested_answers_and_unanswerable_questions(make_task: MakeTask) -> None:
    task = make_task("qa_extractive", **SMALL, answers_field="answers", unanswerable=True)
    nested = {"text": ["mayor", "The mayor"], "answer_start": [4, 0]}
    task.options.check(example(question="?", context=CONTEXT, answers=nested))

    assert task.options.spans(example(question="?", context=CONTEXT, answers=nested)) == [(4, 9), (0, 9)]
    features = task.encode(example(question="?", context=CONTEXT, answers={"text": [], "answer_start": []}))
    assert all(f.extra["span"][0] == sum(f.extra["context"]) for f in features)


def test_rows_that_leave_no_room_are_refused(make_task: MakeTask) -> None:
    with pytest.raises(DataError, match=r"the question has \d+ tokens, more than max_question_tokens=5"):
        make_task("qa_extractive", stride=16, max_question_tokens=5).encode(row())
    with pytest.raises(DataError, match=r"has room for \d+ tokens of the context, and windows share stride=64"):
        make_task("qa_extractive", stride=64, max_question_tokens=64, seq_length=90).encode(row())
    faults = list(make_task("qa_extractive", stride=64).options.faults(96))
    assert "data.seq_length=96 leaves 0 tokens for the context" in faults[0]
    assert list(make_task("qa_extractive", stride=64).options.faults(512)) == []


class _Head:
    def __init__(self, hidden: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.parameters = {
            "weight": torch.nn.Parameter(torch.randn(2, hidden, generator=generator)),
            "bias": torch.nn.Parameter(torch.zeros(2)),
        }
        self.own_offset = 0

    def gather_replicas(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_the_loss_is_the_mean_cross_entropy_of_start_and_end(make_task: MakeTask) -> None:
    task = make_task("qa_extractive")
    head = _Head(8)
    hidden = torch.randn(12, 2, 8, generator=torch.Generator().manual_seed(2))
    weights = torch.zeros(2, 12)
    weights[:, 0] = 1
    rows = TaskRows(
        tokens=torch.zeros(2, 12, dtype=torch.long),
        weights=weights,
        documents=torch.zeros(2, 12, dtype=torch.long),
        extra={"span": torch.tensor([[4, 6], [9, 9]]), "context": torch.tensor([[3, 5], [2, 7]])},
    )

    loss = task.loss(hidden, rows, head)

    expected = torch.zeros(())
    for place, (first, count, start, end) in enumerate([(3, 5, 4, 6), (2, 7, 9, 9)]):
        scores = hidden[first : first + count + 1, place] @ head.parameters["weight"].t()
        for column, target in ((0, start), (1, end)):
            expected = expected - scores[:, column].log_softmax(0)[target - first] / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


class _Pointing(Tiny):
    """Hidden states of two numbers: 1 where the answer starts and ends."""

    def __init__(self, starts: int, ends: int, null: float = 0.0) -> None:
        self.head = {"weight": torch.eye(2), "bias": torch.zeros(2)}
        self.starts, self.ends, self.null = starts, ends, null

    def hidden_states(self, sequences: Any) -> list[torch.Tensor]:
        found = []
        for ids in sequences:
            state = torch.zeros(len(ids), 2)
            state[-1] = self.null
            for column, token in ((0, self.starts), (1, self.ends)):
                places = [i for i, one in enumerate(ids) if one == token]
                if places:
                    state[places[-1], column] = 5.0
            found.append(state)
        return found


def test_the_best_span_over_all_windows_is_predicted(make_task: MakeTask, tokenizer: TaskTokenizer) -> None:
    text = CONTEXT + " Zebra Yellow Xylophone."
    task = make_task("qa_extractive", **SMALL, unanswerable=True, max_answer_tokens=30)
    ids, offsets = tokenizer.encode_with_offsets(text)
    first = next(ids[i] for i, (a, b) in enumerate(offsets) if b > text.index("Zebra"))
    last = next(ids[i] for i, (a, b) in reversed(list(enumerate(offsets))) if a < text.index("Xylophone") + 9)
    rows = [example(question="Which?", context=text, answer="Zebra Yellow Xylophone")]

    [found] = task.predict(_Pointing(first, last), rows)
    [none] = task.predict(_Pointing(first, last, null=30.0), rows)

    assert found.prediction == "Zebra Yellow Xylophone"
    assert found.scores == {"exact_match": 100.0, "f1": 100.0}
    assert found.parts["n_best"][0] == ["Zebra Yellow Xylophone", 10.0]
    assert (none.prediction, none.scores["f1"]) == ("", 0.0)


def test_a_tiny_llama_points_somewhere(make_task: MakeTask, tokenizer: TaskTokenizer) -> None:
    task = make_task("qa_extractive", **SMALL)
    head = {"weight": torch.randn(2, 32, generator=torch.Generator().manual_seed(0)), "bias": torch.zeros(2)}

    outcomes = list(task.predict(Tiny(tokenizer.vocab_size, tokenizer.eos_id, head), [row()] * 3))

    assert len({o.prediction for o in outcomes}) == 1
    assert outcomes[0].prediction in CONTEXT
    assert task.corpus_scores(outcomes)["f1"] == pytest.approx(outcomes[0].scores["f1"])


def test_squads_scores() -> None:
    assert normalize_answer("An  apple, the pear!") == "apple pear"
    assert exact_match("The Cat", "cat.") == 1.0
    assert token_f1("a b c", "b d") == pytest.approx(2 / 4)  # "a" is an article
    assert token_f1("", "") == 1.0
    assert token_f1("", "x") == 0.0
    assert squad("no", ["yes", "No"]) == {"exact_match": 100.0, "f1": 100.0}
    assert squad("", []) == {"exact_match": 100.0, "f1": 100.0}
