"""Complete prompts with a Hugging Face folder, through transformers alone: what a user of the export would do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llama_scale.checkpoint.manifest import MANIFEST
from llama_scale.convert.hf_config import CONFIG
from llama_scale.convert.models import stop_ids
from llama_scale.errors import ConvertError


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    Args:
        max_new_tokens: Most tokens to add.
        temperature: 0: the most likely token; else the softmax's temperature.
        top_p: Sample from the smallest set of tokens whose probabilities sum to this.
        seed: Of the random numbers.
    """

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int


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
    folder: Path, prompts: Sequence[str], *, sampling: Sampling, on_loaded: Callable[[str], None] | None = None
) -> list[Completion]:
    """Complete each prompt.

    Args:
        folder: Hugging Face folder with a tokenizer.
        prompts: Texts.
        sampling: How tokens are chosen.
        on_loaded: Is told what was loaded before the first completion.

    Raises:
        ConvertError: The folder holds no model, no tokenizer, or transformers cannot load one of them; or a prompt
            has no tokens or leaves no room in the model's context.
    """
    _check_folder(folder)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    except Exception as error:  # whatever a damaged folder makes the library raise
        raise ConvertError(f"transformers cannot load {folder}: {error}") from error
    if torch.cuda.is_available():
        model = model.to("cuda")
    if on_loaded is not None:
        on_loaded(f"{folder}: {sum(p.numel() for p in model.parameters()):,} parameters, {model.dtype}")
    torch.manual_seed(sampling.seed)
    return list(_completions(model, tokenizer, prompts, sampling=sampling, stop=stop_ids(folder)))


def _completions(
    model: Any, tokenizer: Any, prompts: Sequence[str], *, sampling: Sampling, stop: Sequence[int]
) -> Iterator[Completion]:
    import torch
    from transformers import GenerationConfig

    choice: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        choice = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    context = model.config.max_position_embeddings
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"].to(device=model.device, dtype=torch.long)
        length = ids.shape[1]
        if length == 0:
            raise ConvertError(f"the prompt {prompt!r} has no tokens; write at least one word")
        if length >= context:
            raise ConvertError(
                f"the prompt {prompt[:40]!r}... has {length} tokens, the model's context is {context}; shorten it"
            )
        settings = GenerationConfig(
            max_new_tokens=min(sampling.max_new_tokens, context - length),
            eos_token_id=list(stop) or None,
            pad_token_id=stop[0] if stop else 0,
            **choice,
        )
        with torch.no_grad():
            made = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        new = made[0, length:].tolist()
        # Decoded together with the prompt: a word's first token alone would lose the space before it.
        start = len(tokenizer.decode(ids[0], skip_special_tokens=True))
        text = tokenizer.decode(made[0], skip_special_tokens=True)[start:]
        yield Completion(prompt=prompt, text=text, tokens=tuple(new))


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ConvertError(f"{folder} is not a folder; give a folder that `llama-scale convert export` wrote")
    if (folder / MANIFEST).is_file() or (folder / "checkpoints").is_dir():
        raise ConvertError(
            f"{folder} is a {'checkpoint' if (folder / MANIFEST).is_file() else 'run'}, which is sharded; export it "
            f"first: `llama-scale convert export --from {folder} --to HF_DIR`"
        )
    if not (folder / CONFIG).is_file():
        raise ConvertError(f"{folder} has no config.json; give a folder that `llama-scale convert export` wrote")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise ConvertError(
            f"{folder} has no tokenizer; export it with `--tokenizer PATH`, or copy tokenizer.json into the folder"
        )
