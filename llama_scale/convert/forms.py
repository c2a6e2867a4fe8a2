"""The forms in which a checkpoint is exported, each proven against the sharded model before it appears."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from llama_scale.convert.assemble import export_mixture
from llama_scale.convert.embedding_folder import export_embeddings
from llama_scale.convert.export_hf import export_hf
from llama_scale.convert.folders import Progress
from llama_scale.convert.peft import export_peft
from llama_scale.convert.verify import verify
from llama_scale.errors import ConvertError

Form = Literal["hf", "merged", "peft", "mixture", "sentence-transformers"]
"""A plain LLaMA; one with an adapter merged into it; an adapter alone, as PEFT keeps it; everything together; an
embedding model."""


def export(
    checkpoint: Path,
    target: Path,
    *,
    form: Form,
    adapter: str | None = None,
    task: str | None = None,
    base: Path | None = None,
    dtype: str | None = None,
    shard_bytes: int | None = None,
    tokenizer: Path | None = None,
    proven: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Export a checkpoint.

    Args:
        checkpoint: A complete checkpoint of any layout.
        target: New folder.
        form: What to write.
        adapter: Which adapter, for ``merged`` and ``peft``; None: the only one.
        task: Which task, for ``sentence-transformers``; None: the only one of its kind.
        base: Where the checkpoint's frozen base is now; None: where it was.
        dtype: Element type of the base; not for ``peft``.
        shard_bytes: Most bytes of tensors in one file; not for ``peft``.
        tokenizer: Tokenizer of the folder; None: the one that came with the model.
        proven: Compare the folder with the sharded model first.
        progress: Is told of the bytes written and compared.

    Returns:
        What report.json holds.

    Raises:
        ConvertError: An argument does not go with the form, or the export or its proof failed.
    """
    if adapter is not None and form not in ("merged", "peft"):
        raise ConvertError(f"--adapter {adapter} chooses what --as merged or peft writes; --as {form} takes none")
    if task is not None and form != "sentence-transformers":
        raise ConvertError(f"--task {task} chooses what --as sentence-transformers writes; --as {form} takes none")

    def proof(folder: Path, adapter: str | None = adapter) -> dict[str, Any]:
        found = verify(checkpoint, folder, adapter=adapter, base=base, progress=progress)
        found.require()
        return found.to_data() | {"hf": str(target)}

    wanted = proof if proven else None
    if form == "peft":
        for name, value in (("--dtype", dtype), ("--shard-size", shard_bytes)):
            if value is not None:
                raise ConvertError(
                    f"{name} {value} does not go with --as peft, which writes the adapter alone, in fp32"
                )
        return export_peft(checkpoint, target, adapter=adapter, base=base, tokenizer=tokenizer, proof=wanted)
    chosen: dict[str, Any] = {"base": base, "dtype": dtype, "tokenizer": tokenizer, "proof": wanted}
    chosen |= {"progress": progress} | ({} if shard_bytes is None else {"shard_bytes": shard_bytes})
    if form == "mixture":
        return export_mixture(checkpoint, target, **chosen)
    if form == "sentence-transformers":
        return export_embeddings(checkpoint, target, task=task, **chosen)
    return export_hf(checkpoint, target, adapter=adapter, merge=form == "merged", **chosen)
