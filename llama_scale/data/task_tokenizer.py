"""The tokenizer that tasks see: ids, offsets, text and chat templates, loaded when first used."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from llama_scale.data.chat import ChatTemplate, Message
from llama_scale.data.chat_keys import WrittenKeys
from llama_scale.data.chat_turns import RenderedChat, TurnFinder
from llama_scale.data.sentencepiece_folder import bare_sentencepiece, special_names
from llama_scale.data.tokenizer import Offsets, Tokenizer, load_tokenizer
from llama_scale.errors import DataError

_ANCHORS = ("\n", "|")
"""Texts that tokens seldom join with what follows them."""


def starts_texts(examples: Path) -> bool:
    """Tell whether a run's examples begin with what the tokenizer puts before a text; those of version 0.1 do not.

    Args:
        examples: The run's folder of prepared examples; where there are none yet, they will.
    """
    records = [json.loads(path.read_text(encoding="utf-8")) for path in examples.glob("*/*/record.json")]
    return all(record.get("starts_texts", False) for record in records)


def chat_template_of(tokenizer: Path) -> ChatTemplate:
    """Return the chat template of a tokenizer without loading the tokenizer itself.

    Args:
        tokenizer: As ``TaskTokenizer`` takes it.

    Raises:
        DataError: There is no template, or it or the tokenizer is damaged.
    """
    model = tokenizer / "tokenizer.model" if tokenizer.is_dir() and bare_sentencepiece(tokenizer) else tokenizer
    if model.is_dir() or model.suffix == ".json":
        return ChatTemplate(model if model.is_dir() else model.parent)
    return ChatTemplate(model.parent, special_tokens=special_names(model))


class TaskTokenizer:
    """Implements ``extensions.task.Tokenizer``; ranks that only compute losses never load it.

    Args:
        path: A SentencePiece model, a tokenizer.json, or a folder with one of them.
        starts_texts: Whether ``start_ids`` are the tokenizer's own; runs of version 0.1 trained without any.
        trust_code: See ``load_tokenizer``.
    """

    def __init__(self, path: Path, *, starts_texts: bool = True, trust_code: bool = False) -> None:
        self.path = path
        self._trust_code = trust_code
        self._starts_texts = starts_texts

    @property
    def end_id(self) -> int | None:
        """Id of the token that ends a document; None if there is none."""
        return self._tokenizer.eos_id

    @property
    def eos_id(self) -> int:
        """Id of the token that ends a document.

        Raises:
            DataError: The tokenizer has none.
        """
        found = self.end_id
        if found is None:
            raise DataError(
                f"the tokenizer {self._tokenizer.file} has no EOS token, and tasks end answers with it; name one as "
                "eos_token in its tokenizer_config.json"
            )
        return found

    @property
    def start_ids(self) -> list[int]:
        """Ids that the tokenizer puts before a text that starts a sequence: its BOS, or none."""
        return list(self._tokenizer.start_ids) if self._starts_texts else []

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self._tokenizer.vocab_size

    def encode(self, text: str) -> list[int]:
        """Return token ids; nothing is put before or behind them."""
        return self._tokenizer.encode.with_offsets(text)[0]

    def encode_after(self, before: str, text: str) -> list[int]:
        """Return the ids of a text that continues another one, whose own ids stay as they are.

        A SentencePiece model puts a space before every text it encodes, so that ``encode(text)`` alone would give
        another token than the two texts together.

        Args:
            before: What the text continues.
            text: The text.
        """
        for head in (before, *_ANCHORS):
            ids, joined = self.encode(head), self.encode(head + text)
            if joined[: len(ids)] == ids:
                return joined[len(ids) :]
        return self.encode(text)

    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        """Return token ids and the characters ``[start, end)`` of the text that each stands for."""
        return self._tokenizer.encode.with_offsets(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""
        return self._tokenizer.decode(ids)

    def chat(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the text of a conversation by the tokenizer's chat template; special tokens are part of it.

        Raises:
            DataError: The tokenizer has no template, or the template refuses the conversation.
        """
        return self._chat.render(messages, add_generation_prompt=add_generation_prompt, tools=tools, options=options)

    def conversation(
        self,
        messages: Sequence[Message],
        *,
        turns: Collection[int],
        tools: Sequence[Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> RenderedChat:
        """Return the text of a conversation, and where some of the assistant's turns are in it.

        Raises:
            DataError: As ``chat``; or the template passes over a key of the row, or does not let the turns be told.
        """
        self._written.check(messages, tools=tools, options=options)
        return self._turns.find(messages, turns=turns, tools=tools, options=options)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.path, trust_code=self._trust_code)

    @cached_property
    def _written(self) -> WrittenKeys:
        return WrittenKeys(self._chat)

    @cached_property
    def _turns(self) -> TurnFinder:
        return TurnFinder(self._chat)

    @cached_property
    def _chat(self) -> ChatTemplate:
        folder = self.path if self.path.is_dir() else self.path.parent
        return ChatTemplate(folder, special_tokens=self._tokenizer.special_tokens)
