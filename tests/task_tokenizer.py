"""A small byte-level BPE tokenizer with a chat template, trained on the text that the project ships."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from llama_scale.data.documents import find_source
from llama_scale.resources import data_dir

CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def write_tokenizer(
    folder: Path,
    *,
    vocab_size: int = 512,
    template: str | None = CHATML,
    special: tuple[str, ...] = ("<|im_start|>", "<|im_end|>"),
    eos: str = "<|im_end|>",
    bos: str | None = None,
) -> Path:
    """Write tokenizer.json and tokenizer_config.json into ``folder`` and return it; special tokens come first.

    Args:
        folder: Folder, new or not.
        vocab_size: Tokens in all.
        template: The chat template.
        special: Control tokens.
        eos: The one of them that ends a text.
        bos: A token that the tokenizer's post-processor puts before every text, as LLaMA 3's does.
    """
    texts = list(find_source([str(data_dir("configs") / "smoke" / "sample.jsonl.gz")]).documents())[:200]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*special, *([] if bos is None else [bos])],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    if bos is not None:
        made.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", f"{bos}:1", "$B:1"], special_tokens=[(bos, made.token_to_id(bos))]
        )
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": eos, "tokenizer_class": "PreTrainedTokenizerFast"}
    if bos is not None:
        settings["bos_token"] = bos
    if template is not None:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
