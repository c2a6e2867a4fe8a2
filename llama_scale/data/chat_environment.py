"""The Jinja environment in which chat templates run, with the same names and limits as transformers' own.

Mirrors ``_compile_jinja_template`` of transformers 5.24 (``utils/chat_template_utils.py``): templates come from
strangers, so the sandbox is immutable, and ``dict`` and ``namespace`` lead nowhere else. jinja2 is imported at the top:
import this module only where a conversation is rendered.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

Span = tuple[int, int]
"""Characters ``[start, end)`` of a rendered text."""


class GenerationTag(Extension):
    """The block ``{% generation %}...{% endgeneration %}``: what the assistant writes; its place is recorded."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as a plain attribute

    def __init__(self, environment: ImmutableSandboxedEnvironment) -> None:
        super().__init__(environment)
        self._written: list[str] | None = None
        self._spans: list[Span] = []

    def parse(self, parser: Parser) -> nodes.Node:
        """See ``Extension.parse``."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_record"), [], [], body).set_lineno(line)

    def _record(self, caller: Callable[[], str]) -> str:
        text = caller()
        if self._written is not None:
            start = sum(map(len, self._written))
            self._spans.append((start, start + len(text)))
        return text

    @contextmanager
    def recording(self, written: list[str]) -> Iterator[list[Span]]:
        """Yield a list that grows by the span of each block.

        Args:
            written: The caller appends each piece of text to it as the template writes it.
        """
        self._written, self._spans = written, []
        try:
            yield self._spans
        finally:
            self._written = None


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """The environment; compile templates with ``from_string``."""

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols])
        self.filters["tojson"] = _tojson
        self.globals.update(raise_exception=_refuse, strftime_now=_now, dict=_Dict(), namespace=_PublicNamespace)

    def render_spans(self, template: Template, variables: Mapping[str, Any]) -> tuple[str, list[Span]]:
        """Return a template's text and the spans of its generation blocks."""
        written: list[str] = []
        tag = self.extensions[GenerationTag.identifier]
        assert isinstance(tag, GenerationTag)
        with tag.recording(written) as spans:
            for piece in template.generate(**variables):
                written.append(piece)  # the tag reads the list while it grows
        return "".join(written), spans


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML; the order of the parameters is a part of what templates rely on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


class _Dict:
    """``dict`` without the class's attributes."""

    def __call__(self, *pairs: Any, **named: Any) -> dict[Any, Any]:
        return dict(*pairs, **named)

    def fromkeys(self, *arguments: Any) -> dict[Any, Any]:
        return dict.fromkeys(*arguments)


class _PublicNamespace(Namespace):
    """``namespace`` without names that begin with an underscore."""

    def __init__(*arguments: Any, **named: Any) -> None:
        self, values = arguments[0], dict(*arguments[1:], **named)
        for name in values:
            _check_public(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        Namespace.__setitem__(self, name, value)


def _check_public(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(
            f"a chat template cannot store {name!r}: names that begin with an underscore are not allowed"
        )
