from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from llama_scale.data.task_tokenizer import TaskTokenizer
from llama_scale.errors import DataError
from llama_scale.extensions.task import Feature
from llama_scale.tasks.summarization import SummarizationOptions
from llama_scale.tasks.translation import TranslationOptions, language_name
from tests.task_tokenizer import write_tokenizer
from tests.unit.tasks.conftest import DATA, MakeTask, example
from tests.unit.tasks.models import Canned, Tiny

LONG = " ".join(f"word{i}" for i in range(200))


def texts(tokenizer: TaskTokenizer, feature: Feature) -> tuple[str, str]:
    """Return the text without and the text with weight."""
    weighted = feature.weights > 0
    return tokenizer.decode(feature.tokens[~weighted]), tokenizer.decode(feature.tokens[weighted])


def test_the_loss_is_on_the_answer_and_its_end(make_task: MakeTask, tokenizer: TaskTokenizer) -> None:
    task = make_task("summarization")

    [feature] = task.encode(example(document="A long text. ", summary=["short", "other"]))

    assert texts(tokenizer, feature) == ("Summarize the text in one line.\n\nA long text.\n\nSummary:", " short")
    assert feature.tokens[-1] == tokenizer.eos_id
    assert feature.weights[-1] == 1.0
    assert np.flatnonzero(feature.weights)[0] > 0
    assert feature.cut == 0


def test_chat_wraps_the_prompt_and_ends_the_turn(make_task: MakeTask, tokenizer: TaskTokenizer) -> None:
    task = make_task("summarization", chat=True, template="{document}")

    [feature] = task.encode(example(document="Text", summary="short"))

    text = tokenizer.chat([{"role": "user", "content": "Text"}], add_generation_prompt=True)
    prompt = tokenizer.encode(text)
    assert feature.tokens.tolist() == [*prompt, *tokenizer.encode("short"), tokenizer.eos_id]
    assert feature.weights.sum() == len(feature.tokens) - len(prompt)


@pytest.mark.parametrize(("overlong", "kept"), [("truncate_right", "word0 "), ("truncate_left", "word199\n")])
def test_long_documents_are_cut_and_answers_never(
    make_task: MakeTask, tokenizer: TaskTokenizer, overlong: str, kept: str
) -> None:
    task = make_task("summarization", seq_length=64, overlong=overlong)

    [feature] = task.encode(example(document=LONG, summary="short"))

    prompt, answer = texts(tokenizer, feature)
    assert len(feature.tokens) <= 64
    assert len(feature.tokens) > 56
    assert feature.cut > 100
    assert answer == " short"
    assert prompt.startswith("Summarize the text")
    assert prompt.endswith("\n\nSummary:")
    assert kept in prompt


def test_long_documents_can_be_dropped_or_refused(make_task: MakeTask) -> None:
    row = example(document=LONG, summary="short")

    assert make_task("summarization", overlong="drop").encode(row) == []
    with pytest.raises(
        DataError, match=r"rows\.jsonl:7: its prompt has \d+ tokens, .* room for \d+ in data.seq_length=96"
    ):
        make_task("summarization", overlong="error").encode(row)


def test_long_answers_are_refused_or_dropped_never_cut(make_task: MakeTask) -> None:
    row = example(document="short", summary=LONG)

    with pytest.raises(DataError, match=r"rows\.jsonl:7: the answer has \d+ tokens .*answers are never cut"):
        make_task("summarization").encode(row)
    assert make_task("summarization", overlong="drop").encode(row) == []


def test_an_answer_that_leaves_no_room_for_the_template_drops_the_example(make_task: MakeTask) -> None:
    assert make_task("summarization", seq_length=20).encode(example(document="text", summary="short")) == []


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{documnt}", "{documnt} is not known here; there are {document}"),
        ("nothing", "does not hold {document}"),
        ("{document", "write {{ and }} for braces themselves"),
        ("{document!r}", "is no plain name"),
        ("{}", "is no plain name"),
    ],
)
def test_faulty_templates_are_refused(template: str, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        SummarizationOptions.model_validate({"data": DATA, "template": template})
    assert message in str(caught.value)


def test_summaries_are_scored_by_rouge(make_task: MakeTask, tokenizer: TaskTokenizer) -> None:
    task = make_task("summarization", max_new_tokens=8)
    rows = [example(document="d", summary=["the quick brown fox", "a fox"]), example(document="d", summary="cat")]
    model = Canned([tokenizer.encode(" a fox"), tokenizer.encode(" dogs")])

    outcomes = list(task.predict(model, rows))

    assert [o.prediction for o in outcomes] == ["a fox", "dogs"]
    assert outcomes[0].scores == {"rouge1": 100.0, "rouge2": 100.0, "rougeL": 100.0}
    assert task.corpus_scores(outcomes) == {"rouge1": 50.0, "rouge2": 50.0, "rougeL": 50.0}
    assert tokenizer.decode(model.prompts[0]).endswith("\n\nSummary:")


def test_prompts_of_evaluation_leave_room_for_answers(make_task: MakeTask, tokenizer: TaskTokenizer) -> None:
    task = make_task("summarization", seq_length=64, max_new_tokens=24, overlong="drop")
    model = Canned([tokenizer.encode(" yes")])

    outcomes = list(task.predict(model, [example(document=LONG, summary="x"), example(document="d", summary="yes")]))

    assert [o.prediction for o in outcomes] == ["", "yes"]
    assert len(model.prompts) == 1
    with pytest.raises(DataError, match=r"max_new_tokens=64 leaves no room for a prompt in data\.seq_length=64"):
        list(make_task("summarization", seq_length=64).predict(model, [example(document="d", summary="x")]))


def test_translations_name_their_languages_and_are_scored_over_the_corpus(
    make_task: MakeTask, tokenizer: TaskTokenizer
) -> None:
    task = make_task("translation", languages={"source": "en", "target": "de"}, max_new_tokens=32)
    rows = [
        example(source="Save the file and close the window.", target="Die Datei speichern und das Fenster schließen."),
        example(source="Open it.", target=["Öffnen Sie es.", "Öffne es."]),
    ]
    answers = ["Die Datei speichern und das Fenster öffnen.", "Öffne es."]

    [feature] = task.encode(rows[1])
    outcomes = list(task.predict(Canned([tokenizer.encode(text) for text in answers]), rows))
    scores = task.corpus_scores(outcomes)

    assert texts(tokenizer, feature)[0] == "Translate from English to German.\n\nOpen it.\n\nTranslation:"
    import sacrebleu

    references = [["Die Datei speichern und das Fenster schließen.", "Öffnen Sie es."], [None, "Öffne es."]]
    assert scores["bleu"] == pytest.approx(sacrebleu.corpus_bleu(answers, references).score)
    assert scores["chrf"] == pytest.approx(sacrebleu.corpus_chrf(answers, references).score)
    assert task.corpus_scores([]) == {"bleu": 0.0, "chrf": 0.0}


def test_bleus_tokenizer_follows_the_language() -> None:
    def tokenizer_of(target: str, **more: Any) -> str:
        languages = {"source": "en", "target": target}
        return TranslationOptions.model_validate({"data": DATA, "languages": languages, **more}).sacrebleu_tokenizer()

    assert [tokenizer_of(code) for code in ("de", "zh_CN", "zh-Hant", "ja")] == ["13a", "zh", "zh", "char"]
    assert tokenizer_of("ja", bleu_tokenizer="intl") == "intl"
    assert language_name("zh_CN") == "Chinese"


def test_sacrebleus_missing_parts_are_named(make_task: MakeTask) -> None:
    task = make_task("translation", languages={"source": "en", "target": "ja"}, bleu_tokenizer="ja-mecab")

    with pytest.raises(DataError, match="sacrebleu's tokenizer ja-mecab cannot be used"):
        task.corpus_scores([])


def test_generative_qa_needs_an_answer_or_words_for_none(make_task: MakeTask, tokenizer: TaskTokenizer) -> None:
    row = example(question="Who?", context="Nobody knows.", answer={"text": [], "answer_start": []})
    task = make_task("qa_generative", no_answer="unanswerable")

    [feature] = task.encode(row)

    assert texts(tokenizer, feature) == ("Nobody knows.\n\nQuestion: Who?\nAnswer:", " unanswerable")
    with pytest.raises(DataError, match=r"rows\.jsonl:7: field 'answer' has no answer; set no_answer"):
        make_task("qa_generative").encode(row)
    with pytest.raises(ValidationError, match="no_answer is blank"):
        make_task("qa_generative", no_answer=" ")
    with pytest.raises(DataError, match=r"rows\.jsonl:7: no field 'answer' \(option answers_field\)"):
        task.encode(example(question="Who?", context="x"))
    with pytest.raises(DataError, match=r"field 'answer' must be a text, a list of texts"):
        task.encode(example(question="Who?", context="x", answer=[1]))


def test_generative_qa_is_scored_as_squad_does(make_task: MakeTask, tokenizer: TaskTokenizer) -> None:
    task = make_task("qa_generative", template="{question}\n", max_new_tokens=16)
    rows = [example(question="Capital?", answer=["The Paris", "in Paris, France"]), example(question="?", answer="x")]

    outcomes = list(task.predict(Canned([tokenizer.encode("paris."), tokenizer.encode("y")]), rows))

    assert [o.scores for o in outcomes] == [{"exact_match": 100.0, "f1": 100.0}, {"exact_match": 0.0, "f1": 0.0}]
    assert task.options.columns()[-1].name == "question"


def test_a_tiny_llama_answers(make_task: MakeTask, tokenizer: TaskTokenizer) -> None:
    task = make_task("summarization", max_new_tokens=4)
    model = Tiny(tokenizer.vocab_size, tokenizer.eos_id)

    [outcome] = task.predict(model, [example(document="A text.", summary="short")])

    assert isinstance(outcome.prediction, str)
    assert set(outcome.scores) == {"rouge1", "rouge2", "rougeL"}


def test_a_tokenizer_without_template_or_eos_says_so(make_task: MakeTask, tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "t", template=None)
    task = make_task("summarization", chat=True, tokenizer=TaskTokenizer(folder))
    with pytest.raises(DataError, match=r"has no chat template .* use the tokenizer of an instruct model"):
        task.encode(example(document="d", summary="s"))

    (folder / "tokenizer_config.json").write_text("{}")
    task = make_task("summarization", tokenizer=TaskTokenizer(folder))
    with pytest.raises(DataError, match="has no EOS token, and tasks end answers with it"):
        task.encode(example(document="d", summary="s"))


def test_a_template_that_hides_the_answers_head_is_refused(make_task: MakeTask, tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}GO{% endif %}"
    folder = write_tokenizer(tmp_path / "t", template=template)
    task = make_task("summarization", chat=True, tokenizer=TaskTokenizer(folder))

    with pytest.raises(DataError, match=r"writes message 2 otherwise than the prompt for it .*; or use chat: false"):
        task.encode(example(document="d", summary="s"))


def test_questions_without_a_context_have_a_prompt_of_their_own(make_task: MakeTask, tokenizer: TaskTokenizer) -> None:
    """Rows as of alpaca: most of them have a blank input."""
    fields = {"question_field": "instruction", "context_field": "input", "answers_field": "output"}
    task = make_task("qa_generative", **fields, template_without_context="{question}\n")
    rows = [
        {"instruction": "Name a fruit", "input": " ", "output": "apple"},
        {"instruction": "Name a fruit", "input": None, "output": "apple"},
        {"instruction": "Name a fruit", "output": "apple"},
    ]
    for row in rows:
        task.options.check_row(example(**row))
        [feature] = task.encode(example(**row))
        assert texts(tokenizer, feature) == ("Name a fruit\n", "apple")
    [feature] = task.encode(example(instruction="Add", input="1 2", output="3"))

    assert texts(tokenizer, feature) == ("1 2\n\nQuestion: Add\nAnswer:", " 3")
    without = make_task("qa_generative", **fields).options
    with pytest.raises(DataError, match=r"rows\.jsonl:7: field 'input' is blank; .*set template_without_context"):
        without.check_row(example(**rows[0]))
    with pytest.raises(DataError, match=r"rows\.jsonl:7: field 'input' \(option context_field\) is null"):
        without.check_row(example(**rows[1]))
    with pytest.raises(ValidationError, match="template_without_context is never used"):
        make_task("qa_generative", template="{question}\n", template_without_context="{question}")
