"""Section ``tokenizer``: what turns text into the token ids that the data files hold."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llama_scale.spec.base import PathStr, Section


class SentencePieceTokenizer(Section):
    """A SentencePiece model (`llama-scale tokenizer train` writes one)."""

    kind: Literal["sentencepiece"]
    path: PathStr = Field(description="The .model file; the tokenizer_config.json beside it counts.")


class HfTokenizer(Section):
    """A Hugging Face tokenizer folder (tokenizer.json)."""

    kind: Literal["hf"]
    path: PathStr = Field(description="Folder that holds tokenizer.json and tokenizer_config.json.")


Tokenizer = Annotated[SentencePieceTokenizer | HfTokenizer, Field(discriminator="kind")]
