"""The proof of an import: the sharded model against transformers on the folder that it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama_scale.convert.folders import Progress, Proof
from llama_scale.convert.shards import Layout
from llama_scale.convert.verify import verify


def import_proof(
    source: Path, *, layout: Layout, max_ram_bytes: int | None = None, progress: Progress | None = None
) -> Proof:
    """Return the proof that ``import_hf`` calls before its checkpoint appears.

    Args:
        source: The Hugging Face folder; transformers opens it.
        layout: Degrees of the forward pass.
        max_ram_bytes: Refuse a proof for which one of its processes may need more.
        progress: Is told of the bytes compared.

    Returns:
        A function of the checkpoint's folder. It returns the proof's figures for report.json, or raises
        ``ConvertError`` that says what differs.
    """

    def prove(checkpoint: Path) -> dict[str, Any]:
        found = verify(checkpoint, source, layout=layout, progress=progress)
        found.require()
        return found.to_data()

    return prove
