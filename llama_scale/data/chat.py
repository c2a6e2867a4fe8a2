"""Chat templates: a conversation as the text that a tokenizer's own Jinja template makes of it.

The environment is that of transformers' ``apply_chat_template`` (sandboxed, trimmed blocks, ``raise_exception``,
``strftime_now``, ``tojson`` without escapes); importing transformers for it would cost seconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from llama_scale.errors import DataError
from llama_scale.spec.hf_tokenizer import read_settings, read_special_tokens

if TYPE_CHECKING:
    from jinja2 import Template


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
        self._where = folder
        self._template = self._compile(_source(folder, settings))

    def render(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
        """Return the conversation as text, special tokens included.

        Args:
            messages: ``{"role": ..., "content": ...}`` each.
            add_generation_prompt: End with the head of the assistant's next turn.

        Raises:
            DataError: The template refuses the conversation.
        """
        from jinja2 import TemplateError  # lazy: only conversations need it

        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **self._tokens,
            )
        except (TemplateError, TypeError, ValueError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(f"the chat template of {self._where} refuses a conversation of {roles}: {error}") from error

    def _compile(self, source: str) -> Template:
        from jinja2 import TemplateError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
        try:
            return environment.from_string(source)
        except TemplateError as error:
            raise DataError(f"the chat template of {self._where} is no Jinja template: {error}") from error


def _source(folder: Path, settings: Mapping[str, Any]) -> str:
    """Return the template: a file of its own counts more than the settings, as in transformers."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = settings.get("chat_template")
    if isinstance(found, list):  # several, by name
        named = {entry["name"]: entry["template"] for entry in found}
        found = named.get("default")
    if not isinstance(found, str):
        raise DataError(
            f"the tokenizer {folder} has no chat template (chat_template.jinja, or chat_template in "
            "tokenizer_config.json); use the tokenizer of an instruct model, or a task with chat: false"
        )
    return found


def _tojson(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
