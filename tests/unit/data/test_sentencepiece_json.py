"""A SentencePiece model has one tokenization: SentencePiece's own for text, and transformers' of the exported folder.

Judges: the sentencepiece library for text without control tokens; transformers (``AutoTokenizer`` on the folder of an
export, ``tokenizer(text)`` and ``apply_chat_template``) for texts and conversations with them.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer, sentencepiece_model_pb2
from transformers import AutoTokenizer

from llama_scale.convert.tokenizer import write_tokenizer
from llama_scale.data.documents import find_source
from llama_scale.data.task_tokenizer import TaskTokenizer
from llama_scale.data.tokenizer import load_tokenizer
from llama_scale.errors import DataError
from llama_scale.resources import data_dir
from tests.properties import examples

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


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    documents = itertools.islice(find_source([str(data_dir("configs") / "smoke" / "sample.jsonl.gz")]).documents(), 90)
    more = [
        "def f(x): return x == 1 ... the 2026",
        "Stra\u00dfe \u00e9 \u4f60\u597d \u304c \ud55c fi 1/2 :: <a> </b>",
    ] * 9
    path.write_text("\n".join([*documents, *more]), encoding="utf-8")
    return path


MakeModel = Callable[[dict[str, Any]], Path]


@pytest.fixture(scope="module")
def model(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    made: dict[str, Path] = {}

    def make(form: dict[str, Any]) -> Path:
        name = json.dumps(form)
        if name not in made:
            folder = tmp_path_factory.mktemp("model")
            SentencePieceTrainer.train(
                input=str(corpus),
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
            made[name] = folder / "tokenizer.model"
        return made[name]

    return make


def by_parts(original: SentencePieceProcessor, text: str) -> list[int]:
    """Return what SentencePiece makes of the parts between control tokens, and of these."""
    control = ("<s>", "</s>", "<unk>", *CONTROL)
    ids: list[int] = []
    for part in re.split(f"({'|'.join(map(re.escape, control))})", text):
        ids += [original.piece_to_id(part)] if part in control else original.encode(part)
    return ids


def same(original: SentencePieceProcessor, one: list[int], other: list[int]) -> bool:
    """Tell whether two ways to cut a text are equal, or equally likely under a Unigram model."""
    if one == other:
        return True
    scores = [sum(original.get_score(number) for number in ids) for ids in (one, other)]
    spelled = ["".join(original.id_to_piece(number) for number in ids) for ids in (one, other)]
    return spelled[0] == spelled[1] and scores[0] == pytest.approx(scores[1], rel=1e-6)


MakePair = Callable[[dict[str, Any]], tuple[SentencePieceProcessor, TaskTokenizer]]


@pytest.fixture(scope="module")
def pair(model: MakeModel) -> MakePair:
    """SentencePiece's reading of a model, and ours."""
    made: dict[str, tuple[SentencePieceProcessor, TaskTokenizer]] = {}

    def make(form: dict[str, Any]) -> tuple[SentencePieceProcessor, TaskTokenizer]:
        file = model(form)
        return made.setdefault(str(file), (SentencePieceProcessor(model_file=str(file)), TaskTokenizer(file)))

    return make


def check_text(pair: tuple[SentencePieceProcessor, TaskTokenizer], text: str, *, unigram: bool) -> None:
    original, ours = pair
    ids, offsets = ours.encode_with_offsets(text)
    wanted = by_parts(original, text)
    assert ids == wanted or (unigram and same(original, ids, wanted))
    assert all(0 <= start <= end <= len(text) for start, end in offsets)
    assert [start for start, _ in offsets] == sorted(start for start, _ in offsets)


@pytest.mark.parametrize("form", SOME, ids=name_of)
@examples(200)
@given(text=TEXT)
def test_text_has_the_ids_that_sentencepiece_gives(pair: MakePair, form: dict[str, Any], text: str) -> None:
    check_text(pair(form), text, unigram=form["type"] == "unigram")


@pytest.mark.soak
@pytest.mark.parametrize("form", ALL, ids=name_of)
@examples(2000)
@given(text=TEXT)
def test_text_has_the_ids_that_sentencepiece_gives_in_all_forms(
    pair: MakePair, form: dict[str, Any], text: str
) -> None:
    check_text(pair(form), text, unigram=form["type"] == "unigram")


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


MakeExport = Callable[[dict[str, Any], str, dict[str, Any]], tuple[TaskTokenizer, Any]]


@pytest.fixture(scope="module")
def exported(model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> MakeExport:
    made: dict[str, tuple[TaskTokenizer, Any]] = {}

    def make(form: dict[str, Any], template: str, more: dict[str, Any]) -> tuple[TaskTokenizer, Any]:
        name = json.dumps([form, template, more])
        if name not in made:
            made[name] = export(model(form), tmp_path_factory.mktemp("export"), chat_template=template, **more)
        return made[name]

    return make


TURNS = st.lists(TEXT, min_size=1, max_size=4)


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


CHATS = {
    "llama-2": (ALL[2], LLAMA2, {}),
    "chatml": (ALL[0], CHATML, {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]}),
    "vicuna": (ALL[34], VICUNA, {"add_bos_token": True}),
}


@pytest.mark.parametrize("name", CHATS)
@examples(100)
@given(turns=TURNS, prompt=st.booleans())
def test_conversations_have_the_ids_of_the_exported_folder(
    exported: MakeExport, name: str, turns: list[str], prompt: bool
) -> None:
    check_conversation(exported(*CHATS[name]), turns, prompt=prompt)


@pytest.mark.soak
@pytest.mark.parametrize("form", ALL, ids=name_of)
@examples(300)
@given(turns=TURNS, prompt=st.booleans(), chat=st.sampled_from([LLAMA2, CHATML, VICUNA]))
def test_conversations_have_the_ids_of_the_exported_folder_in_all_forms(
    exported: MakeExport, form: dict[str, Any], turns: list[str], prompt: bool, chat: str
) -> None:
    check_conversation(exported(form, chat, {"add_bos_token": chat == VICUNA}), turns, prompt=prompt)


def test_tokens_that_the_files_beside_a_model_add_are_in_the_export(model: MakeModel, tmp_path: Path) -> None:
    size = SentencePieceProcessor(model_file=str(model(ALL[6]))).vocab_size()
    added = {str(size): {"content": "<tool>"}, str(size + 1): {"content": "<end>", "special": True}}

    ours, theirs = export(
        model(ALL[6]), tmp_path, chat_template=CHATML, added_tokens_decoder=added, eos_token="<end>", pad_token=None
    )

    for turns in (["a<tool>", "b <tool> c<end>d"], ["<end>"], ["x"]):
        check_conversation((ours, theirs), turns, prompt=True)
    assert (ours.encode("a<tool><end>")[-2:], ours.eos_id) == ([size, size + 1], size + 1)
    assert (ours.vocab_size, ours.eos_id) == (max(theirs.get_vocab().values()) + 1, theirs.eos_token_id)


def edited(file: Path, folder: Path, change: Callable[[Any], None]) -> Path:
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(file.read_bytes())
    change(proto)
    (folder / "edited.model").write_bytes(proto.SerializeToString())
    return folder / "edited.model"


def _score(proto: Any) -> None:
    proto.pieces[-200].score = proto.pieces[-201].score
    proto.pieces[-200].piece, proto.pieces[-201].piece = "xy", "yx"


def _unused(proto: Any) -> None:
    proto.pieces[-1].type = 5


def _table(proto: Any) -> None:
    proto.normalizer_spec.name = "user_defined"


def _suffix(proto: Any) -> None:
    proto.trainer_spec.treat_whitespace_as_suffix = True


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_score, r"'(xyx|yxy)' gives \[.*\] there and \[.*\] in tokenizer\.json"),
        (_unused, "its piece '.*' is marked as unused"),
        (_table, r"it normalizes text by a table of its own \(user_defined\)"),
        (_suffix, r"it writes the space behind words \(treat_whitespace_as_suffix\)"),
    ],
)
def test_models_that_the_library_cannot_express_are_refused_with_the_reason(
    model: MakeModel, tmp_path: Path, change: Callable[[Any], None], reason: str
) -> None:
    file = edited(model(ALL[2]), tmp_path, change)

    with pytest.raises(DataError, match=rf"edited\.model cannot be converted with equal ids: {reason}.*kind: hf"):
        load_tokenizer(file)


def test_files_beside_a_model_that_contradict_it_are_named(model: MakeModel, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.model"
    file.write_bytes(model(ALL[0]).read_bytes())
    (tmp_path / "added_tokens.json").write_text('{"<tool>": 9999}')
    with pytest.raises(DataError, match=r"say that '<tool>' has the id 9999, and it would get \d+: .*without gaps"):
        load_tokenizer(file)
    (tmp_path / "added_tokens.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(DataError, match=r"tokenizer_config\.json holds list, not an object; it lies beside"):
        load_tokenizer(file)
