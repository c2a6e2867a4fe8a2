"""A SentencePiece model as a Hugging Face tokenizer folder: the one form in which it is trained with and exported.

tokenizer.json         the model's pieces and rules, the tokens that the files beside the model add, BOS and EOS rule
tokenizer_config.json  the settings beside the model, and the names of its own special tokens
chat_template.jinja    and additional_chat_templates/, if they are beside the model
tokenizer.model        the model itself
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_scale.data.sentencepiece_equality import fast_tokenizer
from llama_scale.data.sentencepiece_model import CONTROL, UNKNOWN, load_sentencepiece, read_model
from llama_scale.errors import DataError
from llama_scale.spec.hf_tokenizer import SpecialTokens, read_settings, read_special_tokens

NOT_EXPORTED = frozenset({"auto_map", "name_or_path", "special_tokens_map_file", "tokenizer_file", "vocab_file"})
"""Settings that name code, which is not exported, and paths of this machine."""
_OF_ANOTHER_CLASS = NOT_EXPORTED | {
    *("added_tokens_decoder", "add_prefix_space", "from_slow", "legacy", "sp_model_kwargs", "tokenizer_class"),
    *("use_default_system_prompt", "use_fast"),
}
"""Settings that say how another class builds its tokenizer; tokenizer.json says it here."""


def bare_sentencepiece(folder: Path) -> bool:
    """Tell whether a folder's tokenizer is a SentencePiece model that no class of transformers is named for.

    Raises:
        DataError: Its tokenizer_config.json is not JSON.
    """
    if (folder / "tokenizer.json").is_file() or not (folder / "tokenizer.model").is_file():
        return False
    try:
        return not read_settings(folder / "tokenizer_config.json").get("tokenizer_class")
    except ValueError as error:
        raise DataError(str(error)) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class SentencePieceFolder:
    """A SentencePiece model with the settings beside it, as an exported folder holds them.

    Args:
        model: The .model file.
        library: The ``tokenizers.Tokenizer`` of its tokenizer.json.
        settings: Its tokenizer_config.json.
        named: Key -> special token: those of the settings beside the model, else the model's own.
    """

    model: Path
    library: Any
    settings: Mapping[str, Any]
    named: Mapping[str, str]

    def write(self, folder: Path) -> None:
        """Write the files into an existing folder.

        Raises:
            OSError: They cannot be written.
        """
        (folder / "tokenizer.json").write_text(self.library.to_str(pretty=True), encoding="utf-8")
        text = json.dumps(self.settings, indent=2, ensure_ascii=False) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
        shutil.copyfile(self.model, folder / "tokenizer.model")
        template, more = self.model.parent / "chat_template.jinja", self.model.parent / "additional_chat_templates"
        if template.is_file():
            shutil.copyfile(template, folder / template.name)
        if more.is_dir():
            shutil.copytree(more, folder / more.name)


def read_sentencepiece(model: Path) -> SentencePieceFolder:
    """Convert a SentencePiece model and the settings in its folder to a Hugging Face tokenizer.

    A text that starts a sequence gets BOS before it only where tokenizer_config.json beside the model says
    ``add_bos_token: true`` (and EOS behind it with ``add_eos_token: true``), for SentencePiece itself adds neither.

    Args:
        model: The .model file; tokenizer_config.json, special_tokens_map.json, added_tokens.json and chat templates
            are read from its folder.

    Raises:
        DataError: The model cannot be converted with equal ids, or the files beside it contradict it.
    """
    try:
        settings = read_settings(model.parent / "tokenizer_config.json")
        tokens = read_special_tokens(model.parent)
    except ValueError as error:
        raise DataError(f"{error}; it lies beside the tokenizer {model} and belongs to it") from error
    # As transformers decides it: LlamaTokenizer puts the space before the whole text, unless it is to be "legacy".
    is_llama = str(settings.get("tokenizer_class")).removesuffix("Fast") == "LlamaTokenizer"
    library = fast_tokenizer(model, prefix_once=not settings.get("legacy", not is_llama))
    named = {**_own_names(model, settings), **tokens.named}
    _add_tokens(library, model, {*named.values(), *tokens.extra, *tokens.special}, tokens)
    _surround(library, model, named, settings)
    kept = {key: value for key, value in settings.items() if key not in _OF_ANOTHER_CLASS}
    kept |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **named}
    kept.setdefault("model_max_length", int(1e30))
    if tokens.extra and not kept.get("extra_special_tokens"):
        kept["additional_special_tokens"] = list(tokens.extra)
    return SentencePieceFolder(model=model, library=library, settings=kept, named=named)


def special_names(model: Path) -> dict[str, str]:
    """Return key -> special token of a SentencePiece model with the settings beside it, without converting it.

    Raises:
        DataError: The model is damaged, or a file beside it is not JSON.
    """
    try:
        settings = read_settings(model.parent / "tokenizer_config.json")
        return {**_own_names(model, settings), **read_special_tokens(model.parent).named}
    except ValueError as error:
        raise DataError(str(error)) from error


def _own_names(model: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the special tokens that a model names itself, but for those that the settings say are none."""
    original = load_sentencepiece(model)
    own = {f"{name}_token": getattr(original, f"{name}_id")() for name in ("bos", "eos", "pad", "unk")}
    unset = {key for key, value in settings.items() if value is None}
    return {key: original.id_to_piece(number) for key, number in own.items() if number >= 0 and key not in unset}


def _add_tokens(made: Any, model: Path, special: set[str], tokens: SpecialTokens) -> None:
    """Add the tokens that the files beside a model name, with the ids that they state.

    Raises:
        DataError: A token would get another id than the one that is stated.
    """
    from tokenizers import AddedToken

    read = read_model(model)
    there, control = {piece.text for piece in read.pieces}, set(read.texts(CONTROL, UNKNOWN))
    padding = tokens.named.get("pad_token")
    for token in dict.fromkeys(tokens.added()):
        flags = dict.fromkeys(tokens.flags.get(token, ()), True)
        if token == padding and token not in there | tokens.declared.keys():
            continue  # no text has it; transformers adds it behind the vocabulary
        if token in special and (token not in control or flags):
            made.add_special_tokens([AddedToken(token, special=True, normalized=False, **flags)])
        elif token not in there:
            made.add_tokens([AddedToken(token, normalized=False, **flags)])
    for token, number in tokens.declared.items():
        if made.token_to_id(token) != number:
            raise DataError(
                f"the files beside the tokenizer {model} say that {token!r} has the id {number}, and it would get "
                f"{made.token_to_id(token)}: added tokens follow the model's {len(there)} pieces without gaps; correct "
                "added_tokens.json or added_tokens_decoder in tokenizer_config.json"
            )


def _surround(made: Any, model: Path, named: dict[str, str], settings: dict[str, Any]) -> None:
    """Make a tokenizer put before and behind a text what its settings say.

    Raises:
        DataError: They ask for a token that has no name.
    """
    from tokenizers import processors

    asked = {name: settings.get(f"add_{name}_token") is True for name in ("bos", "eos")}
    missing = [name for name, wanted in asked.items() if wanted and f"{name}_token" not in named]
    if missing:
        raise DataError(
            f"tokenizer_config.json beside the tokenizer {model} says add_{missing[0]}_token: true, and there is no "
            f"{missing[0]}_token; name one there"
        )
    begin, end = ([named[f"{name}_token"]] if wanted else [] for name, wanted in asked.items())
    if begin or end:
        single = [*begin, "$A", *end]
        made.post_processor = processors.TemplateProcessing(
            single=single,
            pair=[*single, *(f"{part}:1" for part in (*begin, "$B", *end))],
            special_tokens=[(token, made.token_to_id(token)) for token in {*begin, *end}],
        )
