"""Task ``sft``: conversations of several forms through the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from llama_scale.data.chat_keys import WrittenKeys
from llama_scale.data.chat_turns import TurnFinder, writes_an_end
from llama_scale.data.examples import check_example
from llama_scale.data.task_tokenizer import chat_template_of
from llama_scale.errors import DataError
from llama_scale.extensions.api import TaskDescriptor
from llama_scale.extensions.examples import Column, Example, FileTaskOptions
from llama_scale.spec.base import PositiveInt
from llama_scale.tasks.prompted import FieldName
from llama_scale.tasks.samples import CONVERSATIONS
from llama_scale.tasks.sft_rows import TEMPLATE_FIELD, Conversation, form_columns, read_conversation, row_form


class SftOptions(FileTaskOptions):
    """Options of ``kind: sft``; the loss counts the assistant's tokens only."""

    refuses_unread: ClassVar[bool] = True
    added_options: ClassVar[frozenset[str]] = FileTaskOptions.added_options | {
        "conversations_field",
        "role_field",
        "content_field",
        "weight_field",
        "roles",
        "instruction_field",
        "input_field",
        "output_field",
        "history_field",
        "system_field",
        "tools_field",
        "train_on",
    }

    form: Literal["auto", "messages", "sharegpt", "alpaca", "pairs"] = Field(
        "auto",
        description="messages: a list of {role, content}; sharegpt: a list of {from, value}; alpaca: instruction, "
        "input and output; pairs: a prompt and a response; auto: the one whose fields the row has.",
    )
    messages_field: FieldName = Field("messages", description="Field with the conversation.")
    conversations_field: FieldName = Field("conversations", description="Field with it in sharegpt rows.")
    role_field: FieldName | None = Field(
        None, description="Key of a message with who speaks. Default: role in messages, from in sharegpt rows."
    )
    content_field: FieldName | None = Field(
        None, description="Key of a message with the text. Default: content beside role, value beside from."
    )
    weight_field: FieldName = Field(
        "weight", description="Key of a message of the assistant with 1 or 0: whether the loss counts it."
    )
    roles: dict[str, str] = Field(
        {},
        description="What other names of roles stand for, e.g. {bot: assistant, customer: user}. Known are those of "
        "chat templates; in sharegpt rows human, gpt, observation and function_call.",
    )
    instruction_field: FieldName = Field("instruction", description="Field with what the user says in alpaca rows.")
    input_field: FieldName = Field(
        "input", description="Field with its second part, on a line of its own; may be blank."
    )
    output_field: FieldName = Field("output", description="Field with the answer in alpaca rows.")
    history_field: FieldName = Field(
        "history", description="Field with earlier [user, assistant] turns of alpaca rows."
    )
    prompt_field: FieldName = Field("prompt", description="Field with the prompt of pairs.")
    response_field: FieldName = Field("response", description="Field with the response of pairs.")
    system_field: FieldName = Field("system", description="Field with the row's system message, in every form.")
    tools_field: FieldName = Field(
        "tools", description="Field with JSON schemas of tools for the chat template: a list, or a list as JSON text."
    )
    system: str | None = Field(None, description="System message in front of conversations that have none.")
    train_on: Literal["all", "last"] = Field("all", description="Which answers of a conversation the loss counts.")
    overlong: Literal["error", "drop", "truncate_right"] = Field(
        "error", description="Conversations longer than a row: stop, leave them out, or cut their end off."
    )
    max_new_tokens: PositiveInt = Field(256, description="Longest answer in evaluation.")

    def columns(self) -> tuple[Column, ...]:
        """See ``FileTaskOptions.columns``; none where each row's form is its own."""
        return () if self.form == "auto" else form_columns(self.form, self)

    def read_fields(self, example: Example) -> frozenset[str]:
        """See ``FileTaskOptions.read_fields``."""
        columns = form_columns(row_form(example, self), self)
        return frozenset({*(column.name for column in columns), self.system_field, self.tools_field, TEMPLATE_FIELD})

    def check(self, example: Example) -> None:
        """See ``FileTaskOptions.check``: a row must be a conversation with an answer to learn."""
        check_example(example, form_columns(row_form(example, self), self))
        self.conversation(example)

    def conversation(self, example: Example) -> Conversation:
        """Return an example as a conversation.

        Raises:
            DataError: It is none; file, line and message are named.
        """
        return read_conversation(example, self)

    def first_rows_check(self, tokenizer: Path) -> Callable[[Example], None] | None:
        """See ``FileTaskOptions.first_rows_check``: the template must write all of a row, and show its answers."""
        template = chat_template_of(tokenizer)
        written, finder = WrittenKeys(template), TurnFinder(template)

        def check(example: Example) -> None:
            found = self.conversation(example)
            try:
                written.check(found.messages, tools=found.tools, options=found.options)
                finder.find(found.messages, turns=found.trained, tools=found.tools, options=found.options)
            except DataError as error:
                raise DataError(f"{example.where}: {error}") from error

        return check

    def launch_notes(self, tokenizer: Path) -> Iterator[str]:
        """See ``FileTaskOptions.launch_notes``."""
        template = chat_template_of(tokenizer)
        if not writes_an_end(template):
            yield (
                f"the chat template of {template.where} writes nothing behind an answer, so that the model does not "
                "learn where to stop; add {{ eos_token }} there"
            )


DESCRIPTOR = TaskDescriptor(
    name="sft",
    options=SftOptions,
    implementation="llama_scale.tasks.sft_module:Sft",
    summary="Supervised fine-tuning on conversations, by the tokenizer's chat template.",
    files=SftOptions.files,
    sample=CONVERSATIONS,
)
