"""The token that ends an assistant's turn by a tokenizer's chat template."""

from __future__ import annotations

from pathlib import Path

from llama_scale.data.task_tokenizer import TaskTokenizer
from llama_scale.data.tokenizer import load_tokenizer
from llama_scale.errors import DataError

_QUESTION, _ANSWER = "V1", "W2"


def turn_end(path: Path) -> int | None:
    """Return the id of the control token that a chat template writes behind an answer, which training counts in.

    Words that a template writes there are no such token: they may stand inside an answer too.

    Args:
        path: SentencePiece model, or folder with a Hugging Face tokenizer.

    Returns:
        None if there is no template, it refuses a plain conversation, or its turns end with no control token.
    """
    tokenizer = TaskTokenizer(path)
    conversation = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = tokenizer.chat(conversation, add_generation_prompt=False).rstrip()
    except DataError:
        return None
    _, found, end = text.rpartition(_ANSWER)
    if not found or not end:
        return None
    last = tokenizer.encode(text)[-1]
    return last if last in load_tokenizer(path).encode.library.get_added_tokens_decoder() else None
