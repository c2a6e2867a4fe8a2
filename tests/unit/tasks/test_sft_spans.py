"""Which tokens the loss counts, against transformers' mask of the same template with ``{% generation %}`` in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_scale.data.task_tokenizer import TaskTokenizer
from llama_scale.errors import DataError
from llama_scale.train.loss import VocabularyRows, linear_loss
from tests.task_tokenizer import CHATML as CHATML_WITH_DEFAULT
from tests.unit.data.chat_templates import SHAPES, WEATHER, calls, plain, said, tagged, write_chat_tokenizer
from tests.unit.tasks.conftest import MakeTask, example

MARKED = [name for name, template in SHAPES.items() if "<GEN>" in template and name != "always a prompt"]
TURNS = [said("user", "Hi"), said("assistant", "Hello there"), said("user", "Bye"), said("assistant", "See you")]
TOOL_TURNS = [
    said("user", "Weather in X and Y?"),
    said("assistant", "Let me look.", tool_calls=calls("X", "Y")),
    said("tool", "12C"),
    said("tool", "9C"),
    said("assistant", "12C, 9C."),
]


class Pair:
    """Our tokenizer of a template, and transformers' of the same one with its marks."""

    def __init__(self, folder: Path, template: str) -> None:
        from transformers import AutoTokenizer

        self.ours = TaskTokenizer(write_chat_tokenizer(folder / "plain", plain(template)))
        self.theirs: Any = AutoTokenizer.from_pretrained(write_chat_tokenizer(folder / "tagged", tagged(template)))

    def mask(self, messages: Sequence[Any], tools: Any = None) -> tuple[list[int], np.ndarray]:
        """Return ids, and for each the number of the assistant's turn that it belongs to; -1: none."""
        found = self.theirs.apply_chat_template(
            messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True
        )
        inside = np.array(found["assistant_masks"], bool)
        begins = inside & ~np.concatenate([[False], inside[:-1]])
        return list(found["input_ids"]), np.where(inside, np.cumsum(begins) - 1, -1)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    return {name: Pair(tmp_path_factory.mktemp("pairs") / str(i), SHAPES[name]) for i, name in enumerate(MARKED)}


WORDS = st.text(st.sampled_from("ab .é𝄞\n"), min_size=1, max_size=10).filter(str.strip)


@pytest.mark.parametrize("shape", MARKED)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.tuples(WORDS, WORDS, st.sampled_from([0, 1])), min_size=1, max_size=3), last=st.booleans())
def test_the_loss_counts_what_transformers_marks(
    make_task: MakeTask, pairs: dict[str, Pair], shape: str, texts: list[tuple[str, str, int]], last: bool
) -> None:
    texts[-1] = (*texts[-1][:2], 1)
    rows = [(said("user", a), said("assistant", b, weight=w)) for a, b, w in texts]
    messages = [message for turn in rows for message in turn]
    counted = {len(texts) - 1} if last else {n for n, (_, _, weight) in enumerate(texts) if weight}
    pair = pairs[shape]
    task = make_task("sft", tokenizer=pair.ours, seq_length=4096, train_on="last" if last else "all")

    try:
        [feature] = task.encode(example(messages=messages))
    except DataError as error:  # a template that writes earlier turns otherwise tells nothing of those
        assert shape == "dropped reasoning" and "writes message" in str(error) and counted != {len(texts) - 1}
        return
    ids, turns = pair.mask([{k: v for k, v in m.items() if k != "weight"} for m in messages])
    assert feature.tokens.tolist() == ids
    assert feature.weights.tolist() == [float(turn in counted) for turn in turns]


@pytest.mark.parametrize("shape", ["tagged calls", "macros"])
@pytest.mark.parametrize("left_out", [None, 1, 4])
def test_tool_calls_are_a_part_of_their_turn(
    make_task: MakeTask, pairs: dict[str, Pair], shape: str, left_out: int | None
) -> None:
    pair = pairs[shape]
    rows = [{**message, "weight": 0} if n == left_out else message for n, message in enumerate(TOOL_TURNS)]

    [feature] = make_task("sft", tokenizer=pair.ours, seq_length=4096).encode(example(messages=rows, tools=[WEATHER]))

    ids, turns = pair.mask(TOOL_TURNS, tools=[WEATHER])
    gone = {None: -1, 1: 0, 4: 1}[left_out]
    assert feature.tokens.tolist() == ids
    assert feature.weights.tolist() == [float(turn >= 0 and turn != gone) for turn in turns]
    assert "weather" in pair.ours.decode([t for t, turn in zip(ids, turns, strict=True) if turn == 0])


def test_marks_of_the_template_are_used(make_task: MakeTask, tmp_path: Path) -> None:
    pair = Pair(tmp_path, SHAPES["dropped reasoning"])
    task = make_task("sft", tokenizer=TaskTokenizer(tmp_path / "tagged"), seq_length=4096)
    messages = [TURNS[0], said("assistant", "Hello", reasoning_content="They greet."), *TURNS[2:]]

    [feature] = task.encode(example(messages=messages))
    [first] = task.encode(example(messages=[messages[0], messages[1], messages[2], {**messages[3], "weight": 0}]))

    ids, turns = pair.mask(messages)
    assert feature.tokens.tolist() == ids
    assert feature.weights.tolist() == [float(turn >= 0) for turn in turns]
    assert first.weights.tolist() == [float(turn == 0) for turn in turns]


def test_marks_that_do_not_fit_turns_leave_none_out(make_task: MakeTask, tmp_path: Path) -> None:
    twice = tagged(
        SHAPES["chatml"].replace("<GEN>{{ message['content']", "<GEN>{{ '>' }}</GEN><GEN>{{ message['content']")
    )
    task = make_task("sft", tokenizer=TaskTokenizer(write_chat_tokenizer(tmp_path / "t", twice)))

    [feature] = task.encode(example(messages=TURNS))
    assert feature.weights.any()
    assert list(task.notes()) == []
    with pytest.raises(DataError, match=r"rows\.jsonl:7: .* marks 4 parts .* with 2 turns of the assistant"):
        task.encode(example(messages=[TURNS[0], {**TURNS[1], "weight": 0}, *TURNS[2:]]))


def test_a_turn_of_weight_0_has_no_gradient(make_task: MakeTask, pairs: dict[str, Pair]) -> None:
    """The loss is torch's cross-entropy over the other turn's tokens, and nothing reaches the states before its own."""
    pair = pairs["chatml"]
    [feature] = make_task("sft", tokenizer=pair.ours).encode(
        example(messages=[TURNS[0], {**TURNS[1], "weight": 0}, *TURNS[2:]])
    )
    ids, turns = pair.mask(TURNS)
    generator = torch.Generator().manual_seed(3)
    size = pair.ours.vocab_size
    states = torch.randn(len(ids) - 1, 16, generator=generator, requires_grad=True)
    weight = torch.randn(size, 16, generator=generator)

    loss = linear_loss(
        states,
        weight,
        labels=torch.from_numpy(feature.tokens[1:]),
        mask=torch.from_numpy(feature.weights[1:]),
        rows=VocabularyRows(start=0, count=size, group=None),
    )
    loss.backward()

    labels = torch.where(torch.from_numpy(turns[1:] == 1), torch.tensor(ids[1:]), -100)
    assert loss.item() == pytest.approx(F.cross_entropy(states @ weight.T, labels, reduction="sum").item(), rel=1e-5)
    assert states.grad is not None
    assert not states.grad[torch.from_numpy(turns[1:] != 1)].any()
    assert states.grad[torch.from_numpy(turns[1:] == 1)].any(dim=1).all()


def test_a_token_over_the_border_counts(make_task: MakeTask, tmp_path: Path) -> None:
    """A head that ends in a space: the answer's first token begins with that space, and is the answer's."""
    template = (
        "{% for m in messages %}{{ 'A: ' if m.role == 'assistant' else 'U: ' }}{{ m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'A: ' }}{% endif %}"
    )
    tokenizer = TaskTokenizer(write_chat_tokenizer(tmp_path / "t", template))
    task = make_task("sft", tokenizer=tokenizer)

    [feature] = task.encode(example(messages=[said("user", "x"), said("assistant", "the end")]))

    counted = [int(t) for t, w in zip(feature.tokens, feature.weights, strict=True) if w]
    assert counted == [*tokenizer.encode(" the end"), tokenizer.eos_id]


@pytest.mark.parametrize("shape", ["no prompt", "always a prompt"])
def test_templates_whose_answers_cannot_be_asked_for_are_refused(
    make_task: MakeTask, tmp_path: Path, shape: str
) -> None:
    folder = write_chat_tokenizer(tmp_path / "t", plain(SHAPES[shape]))
    message = {
        "no prompt": r"ignores add_generation_prompt .* writes '<\|start_header_id\|>assistant<\|end_header_id\|>.*' "
        r"before an answer.*add to the template's end: \{% if add_generation_prompt %\}\{\{ '<\|start_header_id",
        "always a prompt": r"ends a conversation with '.*<\|im_start\|>assistant' although no further answer is asked",
    }[shape]

    for kind in ("sft", "summarization"):
        task = make_task(kind, tokenizer=TaskTokenizer(folder), **({} if kind == "sft" else {"chat": True}))
        with pytest.raises(DataError, match=message):
            task.encode(example(messages=TURNS[:2], document="d", summary="s"))


def test_the_remedy_for_a_missing_prompt_is_one(make_task: MakeTask, tmp_path: Path) -> None:
    folder = write_chat_tokenizer(tmp_path / "t", SHAPES["no prompt"])
    with pytest.raises(DataError) as refused:
        make_task("sft", tokenizer=TaskTokenizer(folder)).encode(example(messages=TURNS))
    end = str(refused.value).partition("add to the template's end: ")[2]
    write_chat_tokenizer(folder, SHAPES["no prompt"] + end)
    tokenizer = TaskTokenizer(folder)

    [feature] = make_task("sft", tokenizer=tokenizer, seq_length=512).encode(example(messages=TURNS))

    counted = [int(t) for t, w in zip(feature.tokens, feature.weights, strict=True) if w]
    end_id = tokenizer.eos_id
    assert counted == [*tokenizer.encode("Hello there"), end_id, *tokenizer.encode("See you"), end_id]


def test_an_answer_without_an_end_is_told_once(make_task: MakeTask, tmp_path: Path) -> None:
    task = make_task("sft", tokenizer=TaskTokenizer(write_chat_tokenizer(tmp_path / "t", SHAPES["no end"])))
    assert list(task.notes()) == []

    [feature] = task.encode(example(messages=TURNS))

    counted = [int(t) for t, w in zip(feature.tokens, feature.weights, strict=True) if w]
    assert task.context.tokenizer.decode(counted) == "Hello thereSee you"
    [note] = task.notes()
    assert note.startswith("2 of 2 trained answers end without a special token")
    good = make_task("sft", tokenizer=TaskTokenizer(write_chat_tokenizer(tmp_path / "c", CHATML_WITH_DEFAULT)))
    good.encode(example(messages=TURNS))
    assert list(good.notes()) == []


def test_a_conversation_may_begin_and_end_with_either(make_task: MakeTask, pairs: dict[str, Pair]) -> None:
    pair = pairs["chatml"]
    messages = [said("assistant", "Welcome"), *TURNS[:3]]
    task = make_task("sft", tokenizer=pair.ours)

    [feature] = task.encode(example(messages=messages))

    ids, turns = pair.mask(messages)
    assert feature.tokens.tolist() == ids
    assert feature.weights.tolist() == [float(turn >= 0) for turn in turns]
    assert list(task.notes()) == ["1 conversations go on after the last answer; what follows it is not trained"]
