"""Task ``translation``: a text and its translation, by a prompt; BLEU and chrF."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llama_scale.extensions.api import TaskDescriptor
from llama_scale.extensions.examples import Column
from llama_scale.spec.base import Section
from llama_scale.tasks.prompted import FieldName, PromptedOptions, template_of
from llama_scale.tasks.samples import TRANSLATIONS


class Languages(Section):
    """The language pair."""

    source: Annotated[str, Field(min_length=1)] = Field(description="Language code of the source, e.g. en.")
    target: Annotated[str, Field(min_length=1)] = Field(description="Language code of the translation, e.g. de.")


class TranslationOptions(PromptedOptions):
    """Options of ``kind: translation``."""

    source: ClassVar[str] = "source"

    languages: Languages = Field(description="The language pair.")
    source_field: FieldName = Field("source", description="Field with the text.")
    target_field: FieldName = Field(
        "target", description="Field with the translation, or a list of them: the first trains, all score."
    )
    template: Annotated[str, template_of({"source", "source_language", "target_language"}, needs="source")] = Field(
        "Translate from {source_language} to {target_language}.\n\n{source}\n\nTranslation:",
        description="The prompt; {source}, {source_language} and {target_language} (English names) are replaced.",
    )
    max_new_tokens: Annotated[int, Field(gt=0)] = Field(192, description="Longest translation in evaluation.")
    bleu_tokenizer: Literal["auto", "13a", "intl", "zh", "char", "none", "ja-mecab", "ko-mecab", "flores200"] = Field(
        "auto", description="sacrebleu's tokenizer; auto: zh for Chinese, char for Japanese, Korean and Thai, else 13a."
    )

    def columns(self) -> tuple[Column, ...]:
        """See ``FileTaskOptions.columns``."""
        return (
            Column(name=self.source_field, option="source_field"),
            Column(name=self.target_field, form="texts", option="target_field"),
        )

    def sacrebleu_tokenizer(self) -> str:
        """Return the name of sacrebleu's tokenizer for the target language."""
        if self.bleu_tokenizer != "auto":
            return self.bleu_tokenizer
        code = self.languages.target.replace("_", "-").partition("-")[0].lower()
        return {"zh": "zh", "ja": "char", "ko": "char", "th": "char"}.get(code, "13a")


_NAMES = {
    "ar": "Arabic", "bg": "Bulgarian", "ca": "Catalan", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek",
    "en": "English", "es": "Spanish", "et": "Estonian", "eu": "Basque", "fa": "Persian", "fi": "Finnish",
    "fr": "French", "he": "Hebrew", "hi": "Hindi", "hr": "Croatian", "hu": "Hungarian", "id": "Indonesian",
    "it": "Italian", "ja": "Japanese", "ko": "Korean", "lt": "Lithuanian", "lv": "Latvian", "nb": "Norwegian",
    "nl": "Dutch", "no": "Norwegian", "pl": "Polish", "pt": "Portuguese", "pt-br": "Brazilian Portuguese",
    "ro": "Romanian", "ru": "Russian", "sk": "Slovak", "sl": "Slovenian", "sr": "Serbian", "sv": "Swedish",
    "th": "Thai", "tr": "Turkish", "uk": "Ukrainian", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
"""ISO 639-1 codes -> English names, for prompts."""


def language_name(code: str) -> str:
    """Return the English name of a language code, or of its language without region; else what was given.

    >>> language_name("pt_BR"), language_name("de-AT"), language_name("Klingon")
    ('Brazilian Portuguese', 'German', 'Klingon')
    """
    key = code.replace("_", "-").lower()
    return _NAMES.get(key) or _NAMES.get(key.partition("-")[0]) or code


DESCRIPTOR = TaskDescriptor(
    name="translation",
    options=TranslationOptions,
    implementation="llama_scale.tasks.translation_module:Translation",
    summary="Translation by a prompt; BLEU and chrF.",
    files=TranslationOptions.files,
    sample=TRANSLATIONS,
    sample_options={"languages": {"source": "en", "target": "de"}},
)
