"""Whether a chat template writes everything that a conversation holds.

A template may pass over what it was not made for (tools, tool calls, reasoning, whole roles) without a word, and a
model would then be trained on less than the row says. Something counts as written where another value, or none,
changes the text of the whole conversation, or of its part up to that message (some templates drop reasoning from
earlier turns on purpose).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llama_scale.data.chat import RESERVED, ChatTemplate, Message
from llama_scale.errors import DataError

_OTHER = "Zq7Zq7Zq7"
"""Another text; nine letters and digits, as some templates want identifiers to be."""


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
        tools_lost = self._loses_tools(chat, messages, text)
        place, lost = 0, list[tuple[int, str]]()
        for number, message in enumerate(messages):
            end, keys = self._check_message(chat, messages, number, text=text, place=place)
            place, lost = end, lost + [(number, key) for key in keys]
            if isinstance(message.get("content"), list) and str(message["content"]) in text:
                raise DataError(
                    f"the content of message {number + 1} ({message['role']}) is a list of parts, and the chat "
                    f"template of {self._template.where} writes it as a Python list; write the content as one text"
                )
        if lost or tools_lost:
            raise DataError(self._worded(messages, lost, tools=tools_lost))

    def _check_options(self, options: Mapping[str, Any], *, with_tools: bool) -> None:
        if options and with_tools not in self._names:
            self._names[with_tools] = self._template.variables(with_tools=with_tools)
        for name in options:
            if name in RESERVED or name not in self._names[with_tools]:
                raise DataError(
                    f"the chat template of {self._template.where} reads no variable {name!r}, which the row's "
                    "chat_template_kwargs hold; remove it, or leave it out with ignore_fields: [chat_template_kwargs]"
                )

    def _loses_tools(self, chat: _Chat, messages: Sequence[Message], text: str) -> bool:
        tools = chat.tools or ()
        fewer = [[*tools[:n], *tools[n + 1 :]] for n in range(len(tools))] if len(tools) > 1 else []
        return bool(tools) and any(replace(chat, tools=left).render(messages) == text for left in (None, *fewer))

    def _check_message(
        self, chat: _Chat, messages: Sequence[Message], number: int, *, text: str, place: int
    ) -> tuple[int, list[str]]:
        """Return where the text behind a message's content begins, and the keys of it that are not written."""
        message, end, lost = messages[number], place, list[str]()
        keys = tuple(key for key, _ in _telling(message))
        for key, value in _telling(message):
            at = text.find(value.strip(), place) if isinstance(value, str) else 0
            before = messages[number - 1]["role"] if number else None
            kind = (key, message["role"], keys, before, isinstance(value, list) and len(value) > 1)
            if at < 0 or kind not in self._written:
                if not all(_differs(chat, messages, number, other, text) for other in _changed(message, key)):
                    lost.append(key)
                    continue
                self._written.add(kind)
            if key == "content" and isinstance(value, str) and at >= 0:
                end = at + len(value.strip())
        return end, lost

    def _worded(self, messages: Sequence[Message], lost: Sequence[tuple[int, str]], *, tools: bool) -> str:
        """Word what is not written: the tools, all keys of the first such message, and the names of the others."""
        parts = ["'tools' of the row"] if tools else []
        if lost:
            number = lost[0][0]
            first = [key for at, key in lost if at == number]
            beside = ", ".join(repr(key) for key, _ in _telling(messages[number]) if key not in first)
            role = messages[number]["role"] + (f", with {beside}" if beside else "")
            parts.append(f"{', '.join(map(repr, first))} of message {number + 1} ({role})")
        names = ", ".join(dict.fromkeys([*(["tools"] if tools else []), *(key for _, key in lost if key != "content")]))
        return (
            f"the chat template of {self._template.where} does not write {' and '.join(parts)}, or not all of it, so "
            f"that it would be lost; remove it{f', leave it out with ignore_fields: [{names}]' if names else ''}, or "
            "use a chat template that writes it"
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


def _changed(message: Message, key: str) -> Iterator[Message]:
    """Yield a message with another text or none under a key, fewer elements in its list, and other tool calls."""
    value = message[key]
    if isinstance(value, str):
        yield {**message, key: _OTHER if value != _OTHER else _OTHER[::-1]}
        yield {**message, key: ""}
    elif key == "content":
        yield {**message, key: [{"type": "text", "text": _OTHER}]}
    else:
        yield {name: kept for name, kept in message.items() if name != key}
    for number, item in enumerate(value if isinstance(value, list) else ()):
        if len(value) > 1:
            yield {**message, key: [*value[:number], *value[number + 1 :]]}
        if key == "tool_calls":
            for call in _other_calls(item):
                yield {**message, key: [*value[:number], call, *value[number + 1 :]]}


def _other_calls(call: Any) -> Iterator[Any]:
    """Yield a tool call with another name, and without its arguments."""
    function = call.get("function", call)
    changes: list[dict[str, Any]] = [{"name": _OTHER}]
    if function.get("arguments"):
        changes.append({"arguments": type(function["arguments"])()})
    for change in changes:
        changed = {**function, **change}
        yield {**call, "function": changed} if "function" in call else changed


def _differs(chat: _Chat, messages: Sequence[Message], number: int, other: Message, text: str) -> bool:
    """Tell whether another message in a place changes the text of the conversation, or of its part up to there."""
    if chat.render([*messages[:number], other, *messages[number + 1 :]]) != text:
        return True
    upto = chat.render(messages[: number + 1])
    return upto is not None and chat.render([*messages[:number], other]) != upto
