"""BOS stands where transformers puts it: before a text that starts a sequence, once, and never in a rendered chat.

The judge is transformers on the folder that an export holds: ``tokenizer(text)`` and ``apply_chat_template``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from llama_scale.convert.tokenizer import write_tokenizer as export_tokenizer
from llama_scale.data.build import build_token_files
from llama_scale.data.documents import find_source
from llama_scale.data.reader import TokenFile
from llama_scale.data.sentencepiece_training import train_sentencepiece
from llama_scale.data.statistics import token_statistics
from llama_scale.data.task_tokenizer import TaskTokenizer, starts_texts
from llama_scale.evaluation.completion import complete
from llama_scale.extensions.examples import Example
from llama_scale.extensions.task import Task
from llama_scale.resources import data_dir
from tests.task_tokenizer import write_tokenizer
from tests.unit.tasks.conftest import MakeTask, example

LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
KINDS: dict[str, dict[str, Any]] = {
    "byte-level with BOS": {},
    "byte-level without": {},
    "SentencePiece with add_bos_token": {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True},
    "SentencePiece alone": {"chat_template": LLAMA2},
}
BOS = {"byte-level with BOS": 2, "SentencePiece with add_bos_token": 1}
"""Kind -> its BOS id; the others have none before a text."""


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = find_source([str(data_dir("configs") / "smoke" / "sample.jsonl.gz")])
    return train_sentencepiece(text, tmp_path_factory.mktemp("sp"), vocab_size=600)


class Pair:
    """A tokenizer as a run names it, and as transformers reads it from the folder of an export."""

    def __init__(self, kind: str, folder: Path, sentencepiece: Path) -> None:
        self.bos = BOS.get(kind)
        self.path = folder / "tokenizer"
        if kind.startswith("byte"):
            write_tokenizer(self.path, bos="<bos>" if self.bos else None)
        else:
            self.path.mkdir()
            (self.path / "tokenizer.model").write_bytes(sentencepiece.read_bytes())
            settings = {"chat_template": LLAMA2, **KINDS[kind]}
            (self.path / "tokenizer_config.json").write_text(json.dumps(settings))
            self.path /= "tokenizer.model"
        (folder / "out").mkdir()
        export_tokenizer(self.path, folder / "out", vocab_size=1000)
        self.ours = TaskTokenizer(self.path)
        self.theirs = AutoTokenizer.from_pretrained(folder / "out")

    def text(self, text: str) -> list[int]:
        return list(self.theirs(text)["input_ids"])

    def chat(self, *turns: str, prompt: bool = False) -> list[int]:
        messages = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
        return list(self.theirs.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False))


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path: Path, sentencepiece: Path) -> Pair:
    return Pair(request.param, tmp_path, sentencepiece)


MakeTaskOf = Callable[..., Task]


@pytest.fixture
def task_of(make_task: MakeTask, pair: Pair) -> MakeTaskOf:
    return lambda kind, **options: make_task(kind, tokenizer=pair.ours, **options)


class Recorder:
    """A model that answers nothing and keeps what it was asked."""

    context = 512

    def __init__(self) -> None:
        self.prompts: list[list[int]] = []

    def generate(self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> list[list[int]]:
        self.prompts += [list(prompt) for prompt in prompts]
        return [[] for _ in prompts]


def asked(task: Task, row: Example) -> list[list[int]]:
    """Return the prompts that evaluation sends for a row."""
    model = Recorder()
    list(task.predict(model, [row]))  # type: ignore[arg-type]
    return model.prompts


def generated(tokenizer: TaskTokenizer, prompt: str, *, chat: bool) -> list[list[int]]:
    """Return the ids that ``llama-scale generate`` feeds for a prompt."""
    model = Recorder()
    complete(model, tokenizer, [prompt], max_new_tokens=1, chat=chat)  # type: ignore[arg-type]
    return model.prompts


def test_a_prompt_and_its_answer_are_one_text(pair: Pair, task_of: MakeTaskOf) -> None:
    task = task_of("qa_generative", template="Question: {question}\nAnswer:")
    row = example(question="color of sky", answer="blue")
    prompt = pair.text("Question: color of sky\nAnswer:")

    [feature] = task.encode(row)

    assert feature.tokens.tolist() == [*pair.text("Question: color of sky\nAnswer: blue"), pair.ours.eos_id]
    assert np.flatnonzero(feature.weights).tolist() == list(range(len(prompt), len(feature.tokens)))
    assert asked(task, row) == [prompt]
    assert generated(pair.ours, "Question: color of sky\nAnswer:", chat=False) == [prompt]
    assert feature.tokens[:1].tolist() == ([pair.bos] if pair.bos else prompt[:1])


def test_an_answer_goes_on_behind_a_template_that_ends_with_a_space(pair: Pair, task_of: MakeTaskOf) -> None:
    [feature] = task_of("qa_generative", template="{question} = ").encode(example(question="sky", answer="blue"))

    prompt = pair.text("sky = ")
    assert feature.tokens[: len(prompt)].tolist() == prompt
    assert pair.theirs.decode(feature.tokens[:-1], skip_special_tokens=True) == "sky = blue"


def test_a_cut_prompt_keeps_its_start(pair: Pair, task_of: MakeTaskOf) -> None:
    [feature] = task_of("summarization", seq_length=64).encode(example(document="word " * 200, summary="short"))

    assert len(feature.tokens) <= 64
    assert feature.tokens[:4].tolist() == pair.text("Summarize the text")[:4]
    assert not pair.bos or feature.tokens.tolist().count(pair.bos) == 1


def test_a_chat_begins_with_what_its_template_writes(pair: Pair, task_of: MakeTaskOf) -> None:
    ask, answer = "color of sky", "blue"
    prompted = task_of("qa_generative", template="{question}", chat=True, seq_length=192)
    row = example(question=ask, answer=answer)
    whole, prompt = pair.chat(ask, answer), pair.chat(ask, prompt=True)
    conversation = example(messages=[{"role": "user", "content": ask}, {"role": "assistant", "content": answer}])
    sft = task_of("sft")

    [feature], [trained] = prompted.encode(row), sft.encode(conversation)

    end = len(whole) - whole[::-1].index(pair.ours.eos_id)
    assert feature.tokens.tolist() == whole[:end]
    assert trained.tokens.tolist() == whole
    assert trained.weights[whole.index(pair.ours.eos_id, len(prompt))] == 1.0  # the end of the turn is learnt
    assert asked(prompted, row) == [prompt]
    assert asked(sft, conversation) == [prompt]
    assert generated(pair.ours, ask, chat=True) == [prompt]


def test_every_window_of_a_context_starts_once(pair: Pair, task_of: MakeTaskOf) -> None:
    context = "The sky is blue. " * 30
    answer = {"text": ["blue"], "answer_start": [11]}

    features = task_of("qa_extractive", seq_length=96, stride=16).encode(
        example(question="What is blue?", context=context, answer=answer)
    )

    head = [*pair.text("Question:"), *pair.ours.encode("What is blue?")]
    assert len(features) > 2
    for feature in features:
        assert feature.tokens[: len(head)].tolist() == head
        assert not pair.bos or feature.tokens.tolist().count(pair.bos) == 1
        span, (first, _) = feature.extra["span"], feature.extra["context"]
        assert span[0] >= first


def test_texts_that_are_compared_are_sequences_of_their_own(pair: Pair, task_of: MakeTaskOf) -> None:
    task = task_of("semantic_search", max_query_tokens=8, max_document_tokens=40, query_prefix="find: ")

    [feature] = task.encode(example(query="color of sky", positive="blue"))

    assert feature.segments is not None
    query, document = (feature.tokens[feature.segments == number].tolist() for number in (0, 1))
    assert query == [*pair.text("find: color of sky")[:7], pair.ours.eos_id]
    assert document == [*pair.text("blue"), pair.ours.eos_id]


def test_documents_of_token_files_begin_as_texts_do(pair: Pair, tmp_path: Path) -> None:
    texts = ["color of sky", "blue\tand green", "", "a <|im_end|> b </s> c"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    record = build_token_files(find_source([str(tmp_path / "a.jsonl")]), pair.path, tmp_path / "c")
    bare = build_token_files(find_source([str(tmp_path / "a.jsonl")]), pair.path, tmp_path / "d", append_eos=False)

    file, without = TokenFile(str(tmp_path / "c")), TokenFile(str(tmp_path / "d"))
    expected = [pair.text(text) for text in texts if text]
    found = [file.read(i, 0, int(file.lengths[i])).tolist() for i in range(len(file))]
    assert found == [[*ids, pair.ours.eos_id] for ids in expected]
    assert [without.read(i, 0, int(without.lengths[i])).tolist() for i in range(3)] == expected
    assert (record.start_ids, record.special_in_text, record.empty_documents) == ([pair.bos] if pair.bos else [], 1, 1)
    assert bare.start_ids == record.start_ids
    shown = token_statistics(str(tmp_path / "c"))
    assert (shown.first_id, shown.last_id) == (pair.bos, pair.ours.eos_id)


def test_runs_of_the_first_version_go_on_without(tmp_path: Path, sentencepiece: Path) -> None:
    pair = Pair("byte-level with BOS", tmp_path, sentencepiece)
    record = tmp_path / "examples" / "qa-0123456789ab" / "train" / "record.json"
    assert starts_texts(tmp_path / "examples")
    record.parent.mkdir(parents=True)
    record.write_text('{"examples": 1, "features": 1, "rows": 1, "tokens": 4, "cut": 0, "cut_tokens": 0, "dropped": 0}')

    assert not starts_texts(tmp_path / "examples")
    assert TaskTokenizer(pair.path, starts_texts=False).start_ids == []
    record.write_text('{"examples": 1, "starts_texts": true}')
    assert starts_texts(tmp_path / "examples")
