"""An embedding model as a folder of sentence-transformers: transformer, pooling, normalisation.

FOLDER/config.json, model.safetensors   the base with the task's adapter merged, as a LlamaModel (no output layer)
FOLDER/tokenizer.json                   begins and ends every text as the task does
FOLDER/modules.json, 1_Pooling/, ...    what sentence-transformers reads; its prompts are the task's prefixes
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llama_scale.convert.adapters import find_adapter
from llama_scale.convert.export_hf import write_model
from llama_scale.convert.folders import (
    REPORT,
    Progress,
    check_target,
    checkpoint_faults,
    new_folder,
    read_json,
    run_of,
    write_json,
)
from llama_scale.convert.hf_config import CONFIG
from llama_scale.convert.merge import Merger
from llama_scale.convert.weights import Weights
from llama_scale.data.task_tokenizer import starts_texts
from llama_scale.data.tokenizer import Tokenizer, load_tokenizer
from llama_scale.errors import ConvertError, DataError
from llama_scale.extensions import discover
from llama_scale.spec.adapters import Task

KIND = "semantic_search"
_TOKENIZER = "tokenizer.json"
_SETTINGS = "tokenizer_config.json"
_POOLING = "1_Pooling"
_NORMALIZE = "2_Normalize"
_MODULES = (("", "Transformer"), (_POOLING, "Pooling"), (_NORMALIZE, "Normalize"))


@checkpoint_faults()
def export_embeddings(
    checkpoint: Path,
    target: Path,
    *,
    task: str | None = None,
    base: Path | None = None,
    dtype: str | None = None,
    shard_bytes: int = 5_000_000_000,
    tokenizer: Path | None = None,
    proof: Callable[[Path, str | None], dict[str, Any]] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a checkpoint's embedding model as a folder that ``SentenceTransformer(FOLDER)`` loads.

    Args:
        checkpoint: A complete checkpoint of a run with a task of kind ``semantic_search``.
        target: New folder; it appears when everything is written.
        task: Name of that task; None: the only one.
        base: Where the checkpoint's frozen base is now; None: where it was.
        dtype: See ``export_hf``.
        shard_bytes: See ``export_hf``.
        tokenizer: See ``export_hf``.
        proof: Compares the finished, not yet visible folder with the checkpoint's model with an adapter (or none).
        progress: Is told of the bytes written.

    Returns:
        What report.json holds.

    Raises:
        ConvertError: The checkpoint has no such task, its adapter cannot be merged, or there is no tokenizer with EOS.
    """
    check_target(target)
    weights = Weights(checkpoint, base=base, verify="hashes")
    entry = _find_task(weights, task)
    serving = [a.name for a in _adapters(weights) if a.task == entry.name]
    merger = Merger(find_adapter(weights, serving[0])) if serving else None
    with new_folder(target) as tmp:
        report = write_model(
            weights, tmp, merger=merger, dtype=dtype, shard_bytes=shard_bytes, tokenizer=tokenizer, progress=progress
        )
        report |= {"kind": "sentence-transformers", "task": entry.name}
        # The weights are proven while the folder is still a causal language model, whose logits can be compared.
        if proof is not None:
            report["verify"] = proof(tmp, None if merger is None else merger.adapter.name)
        run = run_of(checkpoint)
        starts = run is None or starts_texts(run / "examples")
        _write_modules(tmp, discover.read_options(discover.task(entry.kind), entry.options), starts=starts)
        write_json(tmp / REPORT, report)
    return report


def _adapters(weights: Weights) -> tuple[Any, ...]:
    record = weights.manifest.extensions
    return () if record is None else record.adapters


def _find_task(weights: Weights, name: str | None) -> Task:
    record = weights.manifest.extensions
    tasks = [t for t in (() if record is None else record.tasks) if t.kind == KIND]
    fitting = [t for t in tasks if name in (None, t.name)]
    if len(fitting) == 1:
        return fitting[0]
    known = ", ".join(t.name for t in tasks) or "none"
    asked = "" if name is None else f"--task {name!r}: "
    raise ConvertError(
        f"{asked}checkpoint {weights.folder} has these tasks of kind {KIND}: {known}; name one with --task"
    )


def _write_modules(folder: Path, options: Any, *, starts: bool) -> None:
    config = read_json(folder / CONFIG) or {}
    limit = max(options.max_query_tokens, options.max_document_tokens)
    _write_tokenizer(folder, limit=limit, starts=starts)
    # The weights keep the names of a LlamaForCausalLM; as a LlamaModel the output layer is not asked for.
    write_json(folder / CONFIG, config | {"architectures": ["LlamaModel"]})
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (path, name) in enumerate(_MODULES)
    ]
    write_json(folder / "modules.json", modules)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": limit, "do_lower_case": False})
    prompts = {"query": options.query_prefix, "document": options.document_prefix}
    settings = {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    write_json(folder / "config_sentence_transformers.json", settings)
    for name in (_POOLING, _NORMALIZE):
        (folder / name).mkdir()
    pooling = {
        "word_embedding_dimension": config["hidden_size"],
        "pooling_mode_mean_tokens": options.pooling == "mean",
        "pooling_mode_lasttoken": options.pooling == "last",
        "include_prompt": True,
    }
    write_json(folder / _POOLING / "config.json", pooling)


def _write_tokenizer(folder: Path, *, limit: int, starts: bool) -> None:
    """Make the folder's tokenizer cut every text to ``limit`` tokens in all and end it with EOS, as the task does.

    Args:
        folder: The exported folder.
        limit: Tokens of a text, what stands before and behind it included.
        starts: Whether the task put before texts what the tokenizer puts there.

    Raises:
        ConvertError: There is no tokenizer, or it has no EOS token.
    """
    from tokenizers import normalizers, processors

    loaded = _load_tokenizer(folder)
    made, eos = loaded.encode.library, loaded.eos_id
    before = [made.id_to_token(number) for number in loaded.start_ids] if starts else []
    end = made.id_to_token(eos)
    strip = normalizers.Strip()  # as the task does
    made.normalizer = strip if made.normalizer is None else normalizers.Sequence([strip, made.normalizer])
    single = [*before, "$A", end]
    made.post_processor = processors.TemplateProcessing(
        single=single,
        pair=[*single, *(f"{part}:1" for part in (*before, "$B", end))],
        special_tokens=[(token, made.token_to_id(token)) for token in {*before, end}],
    )
    made.save(str(folder / _TOKENIZER))
    settings = read_json(folder / _SETTINGS) or {}
    settings |= {"eos_token": end, "pad_token": end, "padding_side": "right", "model_max_length": limit}
    for name in ("add_bos_token", "add_eos_token", "bos_token"):
        settings.pop(name, None)
    write_json(folder / _SETTINGS, settings | {"tokenizer_class": "PreTrainedTokenizerFast"})


def _load_tokenizer(folder: Path) -> Tokenizer:
    fault = (
        "an embedding model needs its tokenizer with an EOS token, and the checkpoint came without one; give it with "
        "--tokenizer PATH"
    )
    if not (folder / _TOKENIZER).is_file():
        raise ConvertError(fault)
    try:
        loaded = load_tokenizer(folder)
    except DataError as error:
        raise ConvertError(str(error)) from error
    if loaded.eos_id is None:
        raise ConvertError(fault)
    return loaded
