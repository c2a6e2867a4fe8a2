"""Rows of the task ``sft`` as conversations: messages, sharegpt, alpaca, and pairs of a prompt and a response."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from llama_scale.errors import DataError
from llama_scale.extensions.examples import Column, Example
from llama_scale.tasks.sft_messages import MessageReader, read_tools

if TYPE_CHECKING:
    from llama_scale.tasks.sft import SftOptions

Form = Literal["messages", "sharegpt", "alpaca", "pairs"]
TEMPLATE_FIELD = "chat_template_kwargs"
"""Field with variables of the chat template; TRL reads it too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A row as what a chat template takes.

    Args:
        messages: ``role``, ``content`` and other keys, in transformers' form.
        trained: Numbers of the assistant's messages that the loss counts, from 0, ascending; at least one.
        tools: JSON schemas of tools; None: the row has none.
        options: More variables of the template.
    """

    messages: Sequence[Mapping[str, Any]]
    trained: Sequence[int]
    tools: Sequence[Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def row_form(example: Example, options: SftOptions) -> Form:
    """Return the form of a row: the option's, or the only one whose fields it has.

    Raises:
        DataError: It has the fields of none, or of several.
    """
    if options.form != "auto":
        return options.form
    found = [form for form, names in _needed(options).items() if all(example.values.get(n) is not None for n in names)]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"{example.where}: the row can be read in the forms {' and '.join(found)}; say which in the task's option "
            "form, and leave the other's fields out with ignore_fields"
        )
    needs = "; ".join(f"{form}: {' and '.join(map(repr, names))}" for form, names in _needed(options).items())
    there = ", ".join(map(repr, list(example.values)[:20])) or "none"
    raise DataError(
        f"{example.where}: the fields {there} are no conversation ({needs}); name yours in the options messages_field, "
        "conversations_field, instruction_field and output_field, or prompt_field and response_field"
    )


def form_columns(form: Form, options: SftOptions) -> tuple[Column, ...]:
    """Return the fields that a row of a form must have."""
    if form == "messages":
        return (Column(name=options.messages_field, form="any", option="messages_field"),)
    if form == "sharegpt":
        return (Column(name=options.conversations_field, form="any", option="conversations_field"),)
    if form == "pairs":
        return (
            Column(name=options.prompt_field, option="prompt_field"),
            Column(name=options.response_field, option="response_field"),
        )
    return (
        Column(name=options.instruction_field, blank=True, option="instruction_field"),
        Column(name=options.input_field, blank=True, required=False, option="input_field"),
        Column(name=options.output_field, option="output_field"),
        Column(name=options.history_field, form="any", required=False, option="history_field"),
    )


def read_conversation(example: Example, options: SftOptions) -> Conversation:
    """Return a checked row (see ``form_columns``) as a conversation.

    Raises:
        DataError: It is none; file, line and message are named.
    """
    form = row_form(example, options)
    reader = MessageReader(example.where, options)
    if form in ("messages", "sharegpt"):
        name = options.messages_field if form == "messages" else options.conversations_field
        reader.add_list(example[name], name=name)
    elif form == "alpaca":
        _add_alpaca(reader, example, options)
    else:
        reader.add("user", example[options.prompt_field])
        reader.add("assistant", example[options.response_field])
    reader.add_system(_value(example, options.system_field, options), name=options.system_field)
    return Conversation(
        messages=reader.messages,
        trained=reader.trained(),
        tools=None if "tools" in options.ignore_fields else _tools(example, options),
        options=_template_options(example, options),
    )


def _needed(options: SftOptions) -> dict[Form, tuple[str, ...]]:
    """Return the fields by which a row's form is known."""
    return {
        "messages": (options.messages_field,),
        "sharegpt": (options.conversations_field,),
        "alpaca": (options.instruction_field, options.output_field),
        "pairs": (options.prompt_field, options.response_field),
    }


def _value(example: Example, name: str, options: SftOptions) -> Any:
    return None if name in options.ignore_fields else example.values.get(name)


def _tools(example: Example, options: SftOptions) -> list[Any] | None:
    name = options.tools_field
    return read_tools(_value(example, name, options), where=example.where, name=name)


def _add_alpaca(reader: MessageReader, example: Example, options: SftOptions) -> None:
    """Add the turns of history, then instruction and input on lines of their own, as LLaMA-Factory joins them."""
    history = _value(example, options.history_field, options)
    for turn in history or ():
        if not (isinstance(turn, list) and len(turn) == 2 and all(isinstance(said, str) for said in turn)):
            raise DataError(
                f"{example.where}: field {options.history_field!r} must be a list of [what the user said, what the "
                f"assistant said], and it holds {json.dumps(turn, ensure_ascii=False, default=str)[:60]}"
            )
        reader.add("user", turn[0])
        reader.add("assistant", turn[1])
    parts = (example[options.instruction_field], _value(example, options.input_field, options) or "")
    prompt = "\n".join(part for part in parts if part.strip())
    if not prompt:
        raise DataError(
            f"{example.where}: fields {options.instruction_field!r} and {options.input_field!r} are both blank; remove "
            "the row or fill one in"
        )
    reader.add("user", prompt)
    reader.add("assistant", example[options.output_field])


def _template_options(example: Example, options: SftOptions) -> dict[str, Any]:
    found = _value(example, TEMPLATE_FIELD, options)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise DataError(
            f"{example.where}: field {TEMPLATE_FIELD!r} is {found!r}, and it must be an object of named values"
        )
    return {name: value for name, value in found.items() if value is not None}
