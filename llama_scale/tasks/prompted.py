"""What the options of all tasks have in common whose examples are a prompt and an answer."""

from __future__ import annotations

import string
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from llama_scale.extensions.examples import FileTaskOptions
from llama_scale.spec.base import PositiveInt

FieldName = Annotated[str, Field(min_length=1)]
"""Name of a field of the examples."""

Overlong = Literal["truncate_right", "truncate_left", "drop", "error"]
"""What happens to an example that is longer than a row; answers are never cut."""


def placeholders(template: str) -> set[str]:
    """Return the names in braces of a template.

    Raises:
        ValueError: A brace is not closed, or a placeholder is not a plain name.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"template {template!r}: {error}; write {{{{ and }}}} for braces themselves") from error
    names = set()
    for _, name, form, conversion in parts:
        if name is None:
            continue
        if not name.isidentifier() or form or conversion:
            raise ValueError(f"template {template!r}: {{{name}}} is no plain name; write {{{{ and }}}} for braces")
        names.add(name)
    return names


def template_of(known: set[str], *, needs: str) -> AfterValidator:
    """Return a validator: the template names only what is known, and at least ``needs``."""

    def check(template: str) -> str:
        names = placeholders(template)
        if unknown := names - known:
            there = ", ".join(f"{{{name}}}" for name in sorted(known))
            raise ValueError(f"template {template!r}: {{{min(unknown)}}} is not known here; there are {there}")
        if needs not in names:
            raise ValueError(f"template {template!r} does not hold {{{needs}}}, so that its text would be left out")
        return template

    return AfterValidator(check)


class PromptedOptions(FileTaskOptions):
    """Options of a task that continues a prompt with an answer."""

    refuses_unread: ClassVar[bool] = True

    source: ClassVar[str]
    """The placeholder that is cut where an example is too long."""

    chat: bool = Field(False, description="Send the prompt as a user's message through the tokenizer's chat template.")
    overlong: Overlong = Field(
        "truncate_right",
        description="Examples longer than a row: cut the end or the beginning of the source text, drop them, or stop.",
    )
    max_new_tokens: PositiveInt = Field(64, description="Longest answer in evaluation.")
