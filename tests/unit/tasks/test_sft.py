from __future__ import annotations

from pathlib import Path

import pytest

from llama_scale.data.task_tokenizer import TaskTokenizer
from llama_scale.errors import DataError
from tests.task_tokenizer import write_tokenizer
from tests.unit.data.chat_templates import SHAPES, WEATHER, calls, plain, said, write_chat_tokenizer
from tests.unit.tasks.conftest import MakeTask, example
from tests.unit.tasks.models import Canned

TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello there"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "See you"},
]


def test_the_loss_is_on_every_turn_of_the_assistant(make_task: MakeTask, tokenizer: TaskTokenizer) -> None:
    task = make_task("sft")

    [feature] = task.encode(example(messages=TALK))

    ids = tokenizer.encode(tokenizer.chat(TALK, add_generation_prompt=False))
    assert feature.tokens.tolist() == ids
    counted = [token for token, weight in zip(ids, feature.weights, strict=True) if weight]
    end = tokenizer.eos_id
    assert counted == [*tokenizer.encode("Hello there"), end, *tokenizer.encode("See you"), end]


def test_pairs_and_a_system_message_make_a_conversation(make_task: MakeTask, tokenizer: TaskTokenizer) -> None:
    task = make_task("sft", form="pairs", prompt_field="q", response_field="a", system="Speak.")

    [feature] = task.encode(example(q="Hi", a="Ho"))

    text = "<|im_start|>system\nSpeak.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n"
    assert feature.tokens.tolist() == tokenizer.encode(text)
    assert [column.name for column in task.options.columns()] == ["q", "a"]


def test_templates_render_as_transformers_does(tokenizer: TaskTokenizer) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tokenizer.path)
    for messages in (TALK, TALK[:1], [{"role": "system", "content": "S"}, *TALK[:3]]):
        for prompt in (True, False):
            expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
            assert tokenizer.chat(messages, add_generation_prompt=prompt) == expected


def test_long_conversations_follow_the_policy(make_task: MakeTask) -> None:
    row = example(messages=[TALK[0], {"role": "assistant", "content": "word " * 200}])

    with pytest.raises(
        DataError, match=r"rows\.jsonl:7: the conversation has \d+ tokens, more than data.seq_length=96"
    ):
        make_task("sft").encode(row)
    assert make_task("sft", overlong="drop").encode(row) == []
    [feature] = make_task("sft", overlong="truncate_right").encode(row)
    assert len(feature.tokens) == 96
    assert feature.cut > 100
    late = example(messages=[{"role": "user", "content": "word " * 200}, TALK[1]])
    assert make_task("sft", overlong="truncate_right").encode(late) == []


def test_a_conversation_without_the_assistant_is_refused(make_task: MakeTask) -> None:
    task = make_task("sft")

    with pytest.raises(
        DataError, match=r"rows\.jsonl:7: the conversation has no message of role 'assistant' \(it has user\)"
    ):
        task.options.check(example(messages=TALK[:1]))
    task.options.check(example(messages=TALK))


def test_a_template_that_rewrites_earlier_turns_is_refused(make_task: MakeTask, tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{% if loop.last %}{{ '[' + m.role + ']' + m.content }}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    tokenizer = TaskTokenizer(write_tokenizer(tmp_path / "t", template=template))
    task = make_task("sft", tokenizer=tokenizer)

    with pytest.raises(DataError, match=r"rows\.jsonl:7: the chat template of .*t writes message 2 otherwise"):
        task.encode(example(messages=TALK[:2]))


def test_the_last_turn_is_predicted(make_task: MakeTask, tokenizer: TaskTokenizer) -> None:
    task = make_task("sft")
    model = Canned([tokenizer.encode("see you")])

    [outcome] = task.predict(model, [example(messages=TALK)])

    assert tokenizer.decode(model.prompts[0]).endswith("user\nBye\nassistant\n")
    assert outcome.reference == "See you"
    assert outcome.scores == {"exact_match": 100.0, "rougeL": 100.0}


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% if x %}", "is no Jinja template"),
        ("{{ raise_exception('only users') }}", "refuses a conversation of user, assistant.*: only users"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "refuses a conversation"),
    ],
)
def test_faulty_templates_are_named(make_task: MakeTask, tmp_path: Path, template: str, message: str) -> None:
    task = make_task("sft", tokenizer=TaskTokenizer(write_tokenizer(tmp_path / "t", template=template)))

    with pytest.raises(DataError, match=message):
        task.encode(example(messages=TALK))


def test_the_last_trained_turn_is_predicted_with_its_tools(make_task: MakeTask, tmp_path: Path) -> None:
    """Prompt and reference are what transformers writes before and in that turn."""
    from transformers import AutoTokenizer

    folder = write_chat_tokenizer(tmp_path / "t", plain(SHAPES["tagged calls"]))
    theirs = AutoTokenizer.from_pretrained(folder)
    tokenizer = TaskTokenizer(folder)
    messages = [said("user", "Weather?"), said("assistant", "Let me see.", tool_calls=calls("X")), said("tool", "12C")]
    row = example(messages=[*messages, said("assistant", "12C.", weight=0)], tools=[WEATHER])
    call = '\n<tool_call>\n{"name": "weather", "arguments": {"city": "X"}}\n</tool_call>'
    model = Canned([tokenizer.encode(f"Let me see.{call}")])

    [outcome] = make_task("sft", tokenizer=tokenizer).predict(model, [row])

    prompt = theirs.apply_chat_template(messages[:1], tools=[WEATHER], add_generation_prompt=True)
    assert model.prompts == [prompt["input_ids"]]
    assert outcome.reference == f"Let me see.{call}"
    assert outcome.scores["exact_match"] == 100.0


def test_faults_in_evaluation_name_the_row(make_task: MakeTask, tmp_path: Path) -> None:
    template = "{% if messages[-1].role == 'user' %}{{ raise_exception('no') }}{% endif %}"
    task = make_task("sft", tokenizer=TaskTokenizer(write_tokenizer(tmp_path / "t", template=template)))

    with pytest.raises(DataError, match=r"rows\.jsonl:7: the chat template of .* refuses a conversation of .*user: no"):
        list(task.predict(Canned([[]]), [example(messages=TALK)]))


def test_arguments_that_the_template_quotes_are_told(make_task: MakeTask, tmp_path: Path) -> None:
    tokenizer = TaskTokenizer(write_chat_tokenizer(tmp_path / "t", plain(SHAPES["tagged calls"])))
    task = make_task("sft", tokenizer=tokenizer)
    text, plain_one = calls("X"), calls("Y")
    text[0]["function"]["arguments"] = '{"city": "X"}'

    for call in (text, plain_one):
        task.encode(example(messages=[said("user", "Weather?"), said("assistant", "", tool_calls=call)]))

    [note] = task.notes()
    assert note.startswith("1 tool calls have their arguments as a JSON text")


def test_answers_of_which_nothing_is_marked_are_refused(make_task: MakeTask, tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}{% generation %}{% endgeneration %}{% endfor %}"
    task = make_task("sft", tokenizer=TaskTokenizer(write_tokenizer(tmp_path / "t", template=template)))

    with pytest.raises(DataError, match=r"rows\.jsonl:7: no token is trained: .* check its \{% generation %\} blocks"):
        task.encode(example(messages=TALK))
