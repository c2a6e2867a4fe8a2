"""Which characters of a rendered conversation the assistant writes.

A template may say so itself (``{% generation %}``). Otherwise a turn's text is what rendering the conversation up to it
adds to the same conversation up to the turn before, with the head of the answer asked for: that is where ``generate``
begins. Where this does not give the turn exactly, the conversation is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama_scale.data.chat import ChatTemplate, Message
from llama_scale.errors import DataError

if TYPE_CHECKING:
    from llama_scale.data.chat_environment import Span

_TAGS = "mark what the assistant writes with {% generation %} and {% endgeneration %} in the template"
_PROBES = ("Q7", "Z9")
"""Answers that begin differently: what a template writes before them is the same, and nothing else is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedChat:
    """A conversation as text.

    Args:
        text: All of it.
        spans: Characters ``[start, end)`` that the asked-for turns of the assistant cover, the ends of turns included.
    """

    text: str
    spans: tuple[Span, ...]


def writes_an_end(template: ChatTemplate) -> bool:
    """Tell whether a template writes anything but white space behind an answer; True if that cannot be told."""
    conversation = [{"role": "user", "content": "V1"}, {"role": "assistant", "content": "W2"}]
    try:
        text = template.render(conversation, add_generation_prompt=False)
    except DataError:  # see TurnFinder._check_end
        return True
    return text.partition("W2")[2].strip() != "" or "W2" not in text


class TurnFinder:
    """Render conversations and find the assistant's turns in them.

    Args:
        template: The template.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._checked_ends: set[bool] = set()

    def find(
        self,
        messages: Sequence[Message],
        *,
        turns: Collection[int],
        tools: Sequence[Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> RenderedChat:
        """Return the conversation's text and where some of its turns are.

        Args:
            messages: All turns.
            turns: Numbers of messages of the assistant, from 0.
            tools: See ``ChatTemplate.render``.
            options: See ``ChatTemplate.render``.

        Raises:
            DataError: The template refuses the conversation, or does not let the turns be told from the rest.
        """
        chat = _Chat(self._template, tools, options)
        if self._template.marks_generation(with_tools=tools is not None):
            return self._marked(chat, messages, turns)
        whole = chat.render(messages)
        if turns:
            self._check_end(chat)
        spans = tuple(_span(chat, messages, number, whole) for number in sorted(turns))
        return RenderedChat(text=whole, spans=spans)

    def _marked(self, chat: _Chat, messages: Sequence[Message], turns: Collection[int]) -> RenderedChat:
        text, spans = self._template.render_marked(messages, tools=chat.tools, options=chat.options)
        of_assistant = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
        if sorted(turns) == of_assistant:
            return RenderedChat(text=text, spans=tuple(spans))
        if len(spans) != len(of_assistant):
            raise DataError(
                f"the chat template of {self._template.where} marks {len(spans)} parts with {{% generation %}} in a "
                f"conversation with {len(of_assistant)} turns of the assistant, so that single turns cannot be left "
                "out of the loss; mark each turn as one part, or train all of them"
            )
        chosen = tuple(span for number, span in zip(of_assistant, spans, strict=True) if number in turns)
        return RenderedChat(text=text, spans=chosen)

    def _check_end(self, chat: _Chat) -> None:
        """Refuse a template that writes the head of a further answer behind the last one, unasked.

        Raises:
            DataError: It does.
        """
        if (chat.tools is not None) in self._checked_ends:
            return
        conversation = [
            {"role": "user", "content": "V1"},
            {"role": "assistant", "content": "W2"},
            {"role": "user", "content": "X3"},
        ]
        try:
            asked, short, long = (chat.render(conversation[:number]) for number in (1, 2, 3))
        except DataError:  # such conversations do not exist under this template, or only with more around them
            return
        between, _, end = short.partition("V1")[2].partition("W2")
        head, end = asked.partition("V1")[2].rstrip(), end.rstrip()
        repeated = end[len(end) - _common(head[::-1], end[::-1]) :].strip()
        if head == between.rstrip() and repeated and not long.partition("W2")[2].startswith(end):
            raise DataError(
                f"the chat template of {self._template.where} ends a conversation with {repeated!r} although no "
                "further answer is asked for, so that it would be trained as a part of the last one; write it in the "
                "template under {% if add_generation_prompt %}"
            )
        self._checked_ends.add(chat.tools is not None)


@dataclass(frozen=True, slots=True)
class _Chat:
    """What surrounds the messages of one conversation."""

    template: ChatTemplate
    tools: Sequence[Any] | None
    options: Mapping[str, Any] | None

    def render(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        return self.template.render(messages, add_generation_prompt=prompt, tools=self.tools, options=self.options)


def _span(chat: _Chat, messages: Sequence[Message], number: int, whole: str) -> Span:
    """Return the characters of one turn: from where ``generate`` would begin to the end of what the turn adds."""
    before = messages[:number]
    turn = chat.render(messages[: number + 1])
    head = chat.render(before, prompt=True) if before else _opening(chat, before)
    if not turn.startswith(head):
        raise DataError(
            f"the chat template of {chat.template.where} writes message {number + 1} otherwise than the prompt for it "
            f"({_difference(head, turn)}), so that the assistant's tokens cannot be told; {_TAGS}"
        )
    if before and head == chat.render(before):
        _check_head(chat, before, head)
    end = len(turn.rstrip())
    if not whole.startswith(turn[:end]):
        raise DataError(
            f"the chat template of {chat.template.where} writes message {number + 1} otherwise when others follow "
            f"({_difference(turn[:end], whole)}), so that the assistant's tokens cannot be told; train only the last "
            f"answer of a conversation (train_on: last), or {_TAGS}"
        )
    return len(head), max(end, len(head))


def _opening(chat: _Chat, before: Sequence[Message]) -> str:
    """Return what the template writes before the content of a message of the assistant."""
    one, other = (chat.render([*before, {"role": "assistant", "content": probe}]) for probe in _PROBES)
    return one[: _common(one, other)]


def _check_head(chat: _Chat, before: Sequence[Message], head: str) -> None:
    """Refuse a template that ignores ``add_generation_prompt`` although an answer has a head.

    Raises:
        DataError: It does.
    """
    written = _opening(chat, before)[len(head) :]
    if written.strip():
        raise DataError(
            f"the chat template of {chat.template.where} ignores add_generation_prompt behind a message of role "
            f"{before[-1]['role']}, and writes {written!r} before an answer: that head would count in the loss, and "
            "generate would not begin with it; add to the template's end: "
            f"{{% if add_generation_prompt %}}{{{{ {written!r} }}}}{{% endif %}}"
        )


def _difference(expected: str, found: str) -> str:
    """Return the place where two texts part, for messages."""
    at = _common(expected, found)
    return f"{expected[at : at + 20]!r} against {found[at : at + 20]!r}"


def _common(one: str, other: str) -> int:
    """Return how many characters two texts begin with together."""
    shorter = min(len(one), len(other))
    return next((at for at in range(shorter) if one[at] != other[at]), shorter)
