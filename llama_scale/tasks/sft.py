"""Task ``sft``: conversations, or prompts and responses, through the tokenizer's chat template."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llama_scale.errors import DataError
from llama_scale.extensions.api import TaskDescriptor
from llama_scale.extensions.examples import Column, Example, FileTaskOptions
from llama_scale.spec.base import PositiveInt
from llama_scale.tasks.prompted import FieldName
from llama_scale.tasks.samples import CONVERSATIONS


class SftOptions(FileTaskOptions):
    """Options of ``kind: sft``; the loss counts the assistant's tokens only."""

    form: Literal["messages", "pairs"] = Field(
        "messages", description="messages: a list of {role, content}; pairs: a prompt and a response."
    )
    messages_field: FieldName = Field("messages", description="Field with the conversation.")
    prompt_field: FieldName = Field("prompt", description="Field with the prompt.")
    response_field: FieldName = Field("response", description="Field with the response.")
    system: str | None = Field(None, description="System message in front of conversations that have none.")
    overlong: Literal["error", "drop", "truncate_right"] = Field(
        "error", description="Conversations longer than a row: stop, leave them out, or cut their end off."
    )
    max_new_tokens: PositiveInt = Field(256, description="Longest answer in evaluation.")

    def columns(self) -> tuple[Column, ...]:
        """See ``FileTaskOptions.columns``."""
        if self.form == "messages":
            return (Column(name=self.messages_field, form="messages", option="messages_field"),)
        return (
            Column(name=self.prompt_field, option="prompt_field"),
            Column(name=self.response_field, option="response_field"),
        )

    def check(self, example: Example) -> None:
        """See ``FileTaskOptions.check``: a conversation also needs a turn of the assistant to learn."""
        super().check(example)
        if self.form == "messages" and not any(m["role"] == "assistant" for m in example[self.messages_field]):
            roles = ", ".join(m["role"] for m in example[self.messages_field])
            raise DataError(
                f"{example.where}: {self.messages_field!r} has no message of role 'assistant' (it has {roles}), so "
                "there is nothing to learn; remove the row"
            )

    def conversation(self, example: Example) -> list[dict[str, str]]:
        """Return an example as messages."""
        if self.form == "messages":
            found = [{"role": m["role"], "content": m["content"]} for m in example[self.messages_field]]
        else:
            found = [
                {"role": "user", "content": example[self.prompt_field]},
                {"role": "assistant", "content": example[self.response_field]},
            ]
        if self.system is not None and found[0]["role"] != "system":
            found.insert(0, {"role": "system", "content": self.system})
        return found


DESCRIPTOR = TaskDescriptor(
    name="sft",
    options=SftOptions,
    implementation="llama_scale.tasks.sft_module:Sft",
    summary="Supervised fine-tuning on conversations, by the tokenizer's chat template.",
    files=SftOptions.files,
    sample=CONVERSATIONS,
)
