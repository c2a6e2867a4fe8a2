"""Chat templates: a conversation as the text that a tokenizer's own Jinja template makes of it.

What a template sees is what transformers' ``apply_chat_template`` shows it (see ``chat_environment``; messages lose
keys that are null, and reasoning goes by each of its names); importing transformers for it would cost seconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_scale.errors import DataError
from llama_scale.spec.hf_tokenizer import read_settings, read_special_tokens

if TYPE_CHECKING:
    from jinja2 import Template

    from llama_scale.data.chat_environment import ChatEnvironment, Span

Message = Mapping[str, Any]
"""One turn: ``role``, ``content`` (a text, or a list of parts) and whatever else the template reads."""

RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
"""Names of a template that are no options."""


class ChatTemplate:
    """Hold the chat template of a Hugging Face tokenizer folder.

    Args:
        folder: Folder with ``tokenizer_config.json`` or ``chat_template.jinja``.
        special_tokens: Key in tokenizer_config.json (``bos_token``) -> token; None: as the folder's files name them.

    Raises:
        DataError: There is no template, or it is no Jinja.
    """

    def __init__(self, folder: Path, *, special_tokens: Mapping[str, str] | None = None) -> None:
        try:
            settings = read_settings(folder / "tokenizer_config.json")
            self._tokens = read_special_tokens(folder).named if special_tokens is None else special_tokens
        except ValueError as error:
            raise DataError(str(error)) from error
        self.where = folder
        self._sources = _sources(folder, settings)
        self._compiled: dict[str, Template] = {}
        for name in {"default", "tool_use"} & self._sources.keys():
            self._compile(self._sources[name])

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the conversation as text, special tokens included.

        Args:
            messages: The turns.
            add_generation_prompt: End with the head of the assistant's next turn.
            tools: JSON schemas of the tools that the assistant may call.
            options: More variables of the template, e.g. ``enable_thinking``.

        Raises:
            DataError: The template refuses the conversation.
        """
        return self._render(messages, add_generation_prompt, tools, options, spans=False)[0]

    def render_marked(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[str, list[Span]]:
        """Return the conversation as text and the spans that the template itself marks with ``{% generation %}``.

        Raises:
            DataError: The template refuses the conversation.
        """
        return self._render(messages, False, tools, options, spans=True)

    def marks_generation(self, *, with_tools: bool) -> bool:
        """Tell whether the template marks what the assistant writes with ``{% generation %}``."""
        source = self._source(tools=[] if with_tools else None)
        return re.search(r"\{%-?\s*generation\s*-?%\}", source) is not None

    def variables(self, *, with_tools: bool) -> frozenset[str]:
        """Return the names that the template reads."""
        from jinja2 import meta

        tree = self._environment.parse(self._source(tools=[] if with_tools else None))
        return frozenset(meta.find_undeclared_variables(tree))

    def _render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        tools: Sequence[Any] | None,
        options: Mapping[str, Any] | None,
        *,
        spans: bool,
    ) -> tuple[str, list[Span]]:
        variables = {
            **self._tokens,
            **(options or {}),
            "messages": [_shown(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
            "tools": None if tools is None else list(tools),
            "documents": None,
        }
        template = self._compile(self._source(tools=tools))
        try:
            if spans:
                return self._environment.render_spans(template, variables)
            return template.render(**variables), []
        except Exception as error:  # a template's expressions may raise anything
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise DataError(f"the chat template of {self.where} refuses a conversation of {roles}: {error}") from error

    def _source(self, *, tools: Sequence[Any] | None) -> str:
        """Return the template that transformers would choose.

        Raises:
            DataError: There are several, and none is the default.
        """
        if tools is not None and "tool_use" in self._sources:
            return self._sources["tool_use"]
        if "default" not in self._sources:
            raise DataError(
                f"the tokenizer {self.where} has the chat templates {', '.join(sorted(self._sources))} and none called "
                "default; write the one to use into chat_template.jinja"
            )
        return self._sources["default"]

    @cached_property
    def _environment(self) -> ChatEnvironment:
        from llama_scale.data.chat_environment import ChatEnvironment  # lazy: jinja2, for conversations only

        return ChatEnvironment()

    def _compile(self, source: str) -> Template:
        from jinja2 import TemplateError

        if source not in self._compiled:
            try:
                self._compiled[source] = self._environment.from_string(source)
            except TemplateError as error:
                raise DataError(f"the chat template of {self.where} is no Jinja template: {error}") from error
        return self._compiled[source]


_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names of a message's reasoning, the one that most templates read first."""


def _shown(message: Message) -> dict[str, Any]:
    """Return a message as transformers shows it to a template."""
    shown = {key: value for key, value in message.items() if value is not None}
    reasoning = next((shown[key] for key in _REASONING if key in shown), None)
    if reasoning is None:
        return shown
    return {"thinking": reasoning, **shown, "reasoning_content": reasoning}


def _sources(folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the templates by name: files of their own count more than the settings, as in transformers."""
    found = {file.name.removesuffix(".jinja"): file for file in (folder / _MORE_TEMPLATES).glob("*.jinja")}
    if (folder / "chat_template.jinja").is_file():
        found.setdefault("default", folder / "chat_template.jinja")
    if found:
        return {name: file.read_text(encoding="utf-8") for name, file in found.items()}
    value = settings.get("chat_template")
    if isinstance(value, str):
        return {"default": value}
    named = value.items() if isinstance(value, dict) else _named(value)
    sources = {name: source for name, source in named if isinstance(name, str) and isinstance(source, str)}
    if not sources:
        raise DataError(
            f"the tokenizer {folder} has no chat template (chat_template.jinja, or chat_template in "
            "tokenizer_config.json); use the tokenizer of an instruct model, or write such a model's template into "
            "chat_template.jinja of the folder; a task other than sft can do without: chat: false"
        )
    return sources


_MORE_TEMPLATES = "additional_chat_templates"
"""Folder of a tokenizer with templates beside the default one, as transformers writes it."""


def _named(value: Any) -> list[tuple[Any, Any]]:
    entries = value if isinstance(value, list) else []
    return [(entry.get("name"), entry.get("template")) for entry in entries if isinstance(entry, dict)]
