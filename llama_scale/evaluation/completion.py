"""Complete prompts with an opened model, several at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llama_scale.data.task_tokenizer import TaskTokenizer
from llama_scale.errors import ConvertError, DataError
from llama_scale.evaluation.assembled import AssembledModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A prompt and what the model adds to it.

    Args:
        prompt: The text given.
        text: The text added, special tokens left out.
        tokens: Ids of the added tokens.
    """

    prompt: str
    text: str
    tokens: tuple[int, ...]

    def to_data(self) -> dict[str, Any]:
        """Return JSON-able data."""
        return asdict(self)


def complete(
    model: AssembledModel,
    tokenizer: TaskTokenizer,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    chat: bool = False,
    system: str | None = None,
) -> list[Completion]:
    """Complete each prompt.

    Args:
        model: Who answers.
        tokenizer: From ``Answering.text_tokenizer``.
        prompts: Texts.
        max_new_tokens: Most tokens to add.
        chat: Each prompt is what a user says in a conversation, put into the tokenizer's chat template.
        system: With ``chat``: the system message in front of each prompt.

    Raises:
        ConvertError: A prompt has no tokens, leaves no room in the model's context, or there is no chat template.
    """
    ids = [_encode(tokenizer, prompt, chat=chat, system=system) for prompt in prompts]
    for prompt, tokens in zip(prompts, ids, strict=True):
        if not tokens:
            raise ConvertError(f"the prompt {prompt!r} has no tokens; write at least one word")
        if len(tokens) >= model.context:
            raise ConvertError(
                f"the prompt {prompt[:40]!r}... has {len(tokens)} tokens, the model's context is {model.context}; "
                "shorten it"
            )
    made = model.generate(ids, max_new_tokens=max_new_tokens)
    return [
        Completion(prompt=prompt, text=_text(tokenizer, tokens, new), tokens=tuple(new))
        for prompt, tokens, new in zip(prompts, ids, made, strict=True)
    ]


def _encode(tokenizer: TaskTokenizer, prompt: str, *, chat: bool, system: str | None) -> list[int]:
    if not chat:
        return [*tokenizer.start_ids, *tokenizer.encode(prompt)]
    try:
        first = [] if system is None else [{"role": "system", "content": system}]
        text = tokenizer.chat([*first, {"role": "user", "content": prompt}], add_generation_prompt=True)
    except DataError as error:
        raise ConvertError(f"--chat: {error}") from error
    return tokenizer.encode(text)


def _text(tokenizer: TaskTokenizer, prompt: list[int], new: list[int]) -> str:
    # Decoded together with the prompt: a word's first token alone would lose the space before it.
    return tokenizer.decode([*prompt, *new])[len(tokenizer.decode(prompt)) :]
