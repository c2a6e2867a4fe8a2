"""SentencePiece models of many forms, trained on a little text, and their exports."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from sentencepiece import SentencePieceTrainer
from transformers import AutoTokenizer

from llama_scale.convert.tokenizer import write_tokenizer
from llama_scale.data.documents import find_source
from llama_scale.data.task_tokenizer import TaskTokenizer
from llama_scale.resources import data_dir

SYMBOLS = ["<|im_start|>", "<|im_end|>", "::", "<sep>"]
CONTROL = ["[INST]", "[/INST]"]
FORMS = {
    "type": ("bpe", "unigram"),
    "bytes": (True, False),
    "prefix": (True, False),
    "extra": (True, False),
    "rules": ("identity", "nmt_nfkc"),
    "symbols": (True, False),
}
ALL = [dict(zip(FORMS, values, strict=True)) for values in itertools.product(*FORMS.values())]
# Every pair of values of two options occurs in one of these; the rest are tried in `make soak`.
SOME = [form for number, form in enumerate(ALL) if number in (7, 20, 27, 40, 50, 61)]


def name_of(form: dict[str, Any]) -> str:
    return "-".join(map(str, form.values()))


WORDS = (
    *(
        "the",
        "\u2581",
        "\u2581the",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "a",
        "1",
        "2026",
        "==",
        "=",
        "...",
        "import",
        "def ",
    ),
    *("Stra\u00dfe", "\u00e9", "e\u0301", "e\u0302\u0301", "\u0301", "\ufb01", "\u00bd", "\u00a0", "\u3000", "\u4f60"),
    *("\u304b\u3099", "\u1112\u1161\u11ab", "\u200d", "\U0001f44d\U0001f3fd", "\ua66e", "\u0007", "<0x41>", "<0x0A>"),
    *("<s>", "</s>", "<unk>", "<", ">", "s", "/", ":", *SYMBOLS, *CONTROL),
)
TEXT = st.lists(st.sampled_from(WORDS) | st.characters(exclude_categories=["Cs", "Cn"]), max_size=12).map("".join)

LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
VICUNA = (
    "{% for m in messages %}{{ 'USER: ' + m.content if m.role == 'user' else ' ASSISTANT: ' + m.content + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)


def train(form: dict[str, Any], folder: Path) -> Path:
    """Train a model of a form on a little text."""
    documents = itertools.islice(find_source([str(data_dir("configs") / "smoke" / "sample.jsonl.gz")]).documents(), 90)
    more = [
        "def f(x): return x == 1 ... the 2026",
        "Stra\u00dfe \u00e9 \u4f60\u597d \u304c \ud55c fi 1/2 :: <a> </b>",
    ] * 9
    lines = [line for text in (*documents, *more) for line in text.splitlines() if line]
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=560,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        split_digits=True,
        model_type=form["type"],
        byte_fallback=form["bytes"],
        add_dummy_prefix=form["prefix"],
        remove_extra_whitespaces=form["extra"],
        normalization_rule_name=form["rules"],
        user_defined_symbols=SYMBOLS if form["symbols"] else [],
        control_symbols=CONTROL,
    )
    return folder / "tokenizer.model"


def export(file: Path, folder: Path, **settings: Any) -> tuple[TaskTokenizer, Any]:
    """Return a model with settings beside it as we read it, and as transformers reads it from an export."""
    (folder / "beside").mkdir(parents=True)
    beside = folder / "beside" / "tokenizer.model"
    beside.write_bytes(file.read_bytes())
    (folder / "beside" / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>", **settings})
    )
    (folder / "out").mkdir()
    write_tokenizer(beside, folder / "out", vocab_size=2000)
    return TaskTokenizer(beside), AutoTokenizer.from_pretrained(folder / "out")


def check_conversation(pair: tuple[TaskTokenizer, Any], turns: list[str], *, prompt: bool) -> None:
    ours, theirs = pair
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    text = ours.chat(messages, add_generation_prompt=prompt)
    ids, offsets = ours.encode_with_offsets(text)
    assert ids == theirs.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)
    judged = theirs(text, add_special_tokens=False, return_offsets_mapping=True)
    assert (ids, offsets) == (judged["input_ids"], [tuple(place) for place in judged["offset_mapping"]])
    assert [*ours.start_ids, *ids] == theirs(text)["input_ids"]
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
