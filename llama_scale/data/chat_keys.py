"""Whether a chat template writes everything that a conversation holds.

A template may pass over what it was not made for (tools, tool calls, reasoning, whole roles) without a word, and a
model would then be trained on less than the row says. Something counts as written where leaving it out changes the text
of the whole conversation, or of its part up to that message (some templates drop reasoning from earlier turns on
purpose).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llama_scale.data.chat import RESERVED, ChatTemplate, Message
from llama_scale.errors import DataError

_REMEDY = "remove it, name it in the option ignore_fields, or use a chat template that writes it"


class WrittenKeys:
    """Check conversations of one template; what was found of one kind of message is not tried again.

    Args:
        template: The template.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._written: set[tuple[Any, ...]] = set()
        self._names: dict[bool, frozenset[str]] = {}

    def check(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Check that nothing of a conversation is lost.

        Args:
            messages: All turns; parts of a content are text.
            tools: See ``ChatTemplate.render``.
            options: See ``ChatTemplate.render``.

        Raises:
            DataError: Something is not written; message and key are named.
        """
        self._check_options(options or {}, with_tools=tools is not None)
        chat = _Chat(template=self._template, tools=tools, options=options)
        text = chat.render(messages)
        if text is None:  # what refuses the conversation is said where it is encoded
            return
        self._check_tools(chat, messages, text)
        place = 0
        for number, message in enumerate(messages):
            place = self._check_message(chat, messages, number, text=text, place=place)
            if isinstance(message.get("content"), list) and str(message["content"]) in text:
                raise DataError(
                    f"the content of message {number + 1} ({message['role']}) is a list of parts, and the chat "
                    f"template of {self._template.where} writes it as a Python list; write the content as one text"
                )

    def _check_options(self, options: Mapping[str, Any], *, with_tools: bool) -> None:
        if options and with_tools not in self._names:
            self._names[with_tools] = self._template.variables(with_tools=with_tools)
        for name in options:
            if name in RESERVED or name not in self._names[with_tools]:
                raise DataError(
                    f"the chat template of {self._template.where} reads no variable {name!r}, which the row's "
                    f"chat_template_kwargs hold; {_REMEDY}"
                )

    def _check_tools(self, chat: _Chat, messages: Sequence[Message], text: str) -> None:
        tools = chat.tools or ()
        fewer = [[*tools[:n], *tools[n + 1 :]] for n in range(len(tools))] if len(tools) > 1 else []
        for left in (None, *fewer) if tools else ():
            if replace(chat, tools=left).render(messages) == text:
                what = "the tools of the row" if left is None else "all tools of the row"
                raise DataError(f"the chat template of {self._template.where} does not write {what}; {_REMEDY}")

    def _check_message(self, chat: _Chat, messages: Sequence[Message], number: int, *, text: str, place: int) -> int:
        """Check one message and return where the text behind its content begins."""
        message, end = messages[number], place
        keys = tuple(key for key, _ in _telling(message))
        for key, value in _telling(message):
            at = text.find(value.strip(), place) if isinstance(value, str) else 0
            before = messages[number - 1]["role"] if number else None
            kind = (key, message["role"], keys, before, isinstance(value, list) and len(value) > 1)
            if at < 0 or kind not in self._written:
                for fewer in _without(message, key):
                    if not _differs(chat, messages, number, fewer, text):
                        raise DataError(self._lost(message, number, key, keys))
                self._written.add(kind)
            if key == "content" and isinstance(value, str) and at >= 0:
                end = at + len(value.strip())
        return end

    def _lost(self, message: Message, number: int, key: str, keys: Sequence[str]) -> str:
        beside = ", ".join(repr(other) for other in keys if other != key)
        what = "not write" if key != "tool_calls" else "not write, or only in part,"
        return (
            f"the chat template of {self._template.where} does {what} the key {key!r} of message {number + 1} "
            f"({message['role']}{f', with {beside}' if beside else ''}); {_REMEDY}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chat:
    """What surrounds the messages of one conversation."""

    template: ChatTemplate
    tools: Sequence[Any] | None
    options: Mapping[str, Any] | None

    def render(self, messages: Sequence[Message]) -> str | None:
        """Return the text; None if the template refuses the conversation."""
        try:
            return self.template.render(messages, add_generation_prompt=False, tools=self.tools, options=self.options)
        except DataError:
            return None


def _telling(message: Message) -> Iterator[tuple[str, Any]]:
    """Yield the keys of a message that say something, its role aside."""
    for key, value in message.items():
        said = value.strip() if isinstance(value, str) else value
        if key != "role" and said is not None and said not in ("", [], {}):
            yield key, value


def _without(message: Message, key: str) -> Iterator[Message]:
    """Yield a message without a key, without each element of its list, and without each call's arguments."""
    value = message[key]
    if key == "content":
        yield {**message, key: ""}
    else:
        yield {name: kept for name, kept in message.items() if name != key}
    if not isinstance(value, list):
        return
    for number, item in enumerate(value):
        rest = [*value[:number], *value[number + 1 :]]
        if rest:
            yield {**message, key: rest}
        function = item.get("function", item) if isinstance(item, dict) else None
        if key == "tool_calls" and isinstance(function, dict) and function.get("arguments"):
            bare = {**function, "arguments": type(function["arguments"])()}
            call = {**item, "function": bare} if "function" in item else bare
            yield {**message, key: [*value[:number], call, *value[number + 1 :]]}


def _differs(chat: _Chat, messages: Sequence[Message], number: int, fewer: Message, text: str) -> bool:
    """Tell whether another message in a place changes the text of the conversation, or of its part up to there."""
    if chat.render([*messages[:number], fewer, *messages[number + 1 :]]) != text:
        return True
    upto = chat.render(messages[: number + 1])
    return upto is not None and chat.render([*messages[:number], fewer]) != upto
