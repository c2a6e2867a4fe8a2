"""The proof of an import: the sharded model against transformers on the folder that it came from.

Three checks, none of which trusts what the import read: transformers itself opens the folder. The sharded model, run on
real processes at the import's layout, gives the logits of transformers' model; each tensor of the folder comes back
from the checkpoint bit by bit; numbers that a short text may not show (norms' epsilon, RoPE's frequencies) are equal.
Both models read a matrix when they use it, so a model of any size is proven in the memory of its largest matrices.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from llama_scale.convert.folders import Progress, Proof, Silence, has_tokenizer
from llama_scale.convert.hf_config import read_shape
from llama_scale.convert.hf_weights import HfWeights
from llama_scale.convert.inventory import check_inventory
from llama_scale.convert.mapping import hf_tensors
from llama_scale.convert.matrices import same_bits
from llama_scale.convert.models import Prompts, Results, save_prompts, sharded_model
from llama_scale.convert.proof import Proof as Found
from llama_scale.convert.reference import load_text_tokenizer
from llama_scale.convert.request import BASE, FREQUENCIES, Request
from llama_scale.convert.shards import Layout, check_layout
from llama_scale.convert.source_model import SourceModel
from llama_scale.convert.verify import REAL_PROMPTS, choose_layout, compare
from llama_scale.convert.weights import Weights
from llama_scale.errors import ConvertError
from llama_scale.libraries import missing_message
from llama_scale.spec.model import ModelShape
from llama_scale.spec.nearby import some

_TOKENS = 128
_ROWS = "rows"
_BASE_BYTES = 600 << 20  # Python, torch and Megatron-Core or transformers


def import_proof(
    source: Path, *, layout: Layout, max_ram_bytes: int | None = None, progress: Progress | None = None
) -> Proof:
    """Return the proof that ``import_hf`` calls before its checkpoint appears.

    Args:
        source: The Hugging Face folder; transformers opens it.
        layout: Degrees of the forward pass, made smaller if they are of more than 8 processes.
        max_ram_bytes: Refuse a proof for which one of its processes may need more.
        progress: Is told of the bytes compared.

    Returns:
        A function of the checkpoint's folder. It returns the proof's figures for report.json, or raises
        ``ConvertError`` that says what differs.

    Raises:
        ConvertError: A library is missing, ``max_ram_bytes`` is too little, or the folder cannot be read.
    """
    missing = missing_message("the proof of an import runs the sharded model and needs", "megatron", "transformers")
    if missing:
        raise ConvertError(f"{missing}; or leave the proof out with --no-verify")
    if max_ram_bytes is not None:
        _check_ram(source, layout=layout, limit=max_ram_bytes)

    def prove(checkpoint: Path) -> dict[str, Any]:
        found = _prove(checkpoint, source, layout=layout, progress=progress or Silence())
        try:
            found.require()
        except ConvertError as error:
            raise ConvertError(
                f"{error}; nothing was written. llama-scale reads something in the folder otherwise than transformers "
                "does: please report it with the folder's config.json (--no-verify imports it as it is read)"
            ) from error
        facts = found.to_data()
        del facts["checkpoint"]  # the folder has another name while it is proven
        return facts

    return prove


def _prove(checkpoint: Path, source: Path, *, layout: Layout, progress: Progress) -> Found:
    weights = Weights(checkpoint)
    chosen, smaller = choose_layout(weights.manifest, layout)
    prompts, note = _prompts(source, weights.shape)
    batch = torch.zeros(len(prompts), max(ids.shape[1] for ids in prompts.values()), dtype=torch.int64)
    for row, ids in enumerate(prompts.values()):
        batch[row, : ids.shape[1]] = ids  # what is behind a row's end changes nothing before it
    with tempfile.TemporaryDirectory(prefix="llama-scale-import-") as name:
        folder = Path(name)
        request = _request(weights, chosen, folder=folder)
        save_prompts({_ROWS: batch}, Path(request.prompts))
        with sharded_model(request, folder=folder):
            # Meanwhile: the ranks' imports take as long as this.
            differing = _differing(weights, source, progress)
            model = SourceModel(source, rounded=weights.dtype)
            expected = _rows(model.logits(batch), prompts)
        results = load_file(request.out)
    found = _rows(results[f"logits/{_ROWS}"], prompts)
    rounded = weights.dtype == torch.bfloat16 and _dtypes(source, weights.shape) != {torch.bfloat16}
    notes = (smaller, note, "weights rounded to bf16 on both sides" if rounded else "")
    return Found(
        checkpoint="the checkpoint made of it",
        hf=str(source),
        layout={"tensor": chosen.tp_size, "pipeline": chosen.pp_size, "virtual": chosen.vp_size},
        note="; ".join(text for text in notes if text),
        tensors=len(hf_tensors(weights.shape)),
        differing=differing,
        numbers=model.differences(weights.shape, results[FREQUENCIES]),
        comparisons=tuple(
            compare(label, ids, expected=expected, found=found, generate=0) for label, ids in prompts.items()
        ),
    )


def _request(weights: Weights, layout: Layout, *, folder: Path) -> Request:
    stages = check_layout(weights.shape, layout)
    return Request(
        checkpoint=str(weights.folder.resolve()),
        base=None,
        dtype=str(weights.dtype).removeprefix("torch."),
        tp_size=layout.tp_size,
        pp_size=layout.pp_size,
        vp_size=layout.vp_size,
        stage_layers=tuple(len(stages[p][v].layers) for v in range(layout.vp_size) for p in range(len(stages))),
        prompts=str(folder / "prompts.safetensors"),
        choices={_ROWS: BASE},
        generate=0,
        stop_ids=(),
        out=str(folder / "sharded.safetensors"),
        stream=True,
    )


def _prompts(source: Path, shape: ModelShape) -> tuple[Prompts, str]:
    """Return random tokens and a text, each ``[1, seq]``, and why there is no text."""
    longest = min(_TOKENS, shape.max_position_embeddings)
    generator = torch.Generator().manual_seed(0)
    prompts = {"random": torch.randint(shape.vocab_size, (1, longest), generator=generator)}
    if not has_tokenizer(source):
        return prompts, ""
    try:
        ids = load_text_tokenizer(source)("\n".join(REAL_PROMPTS), return_tensors="pt")["input_ids"][:, :longest]
    except ConvertError as error:
        return prompts, f"no text was compared: {error}"
    if not ids.shape[1] or int(ids.max()) >= shape.vocab_size:
        return prompts, "no text was compared: the tokenizer gives ids that the model does not have"
    return prompts | {"text": ids}, ""


def _rows(logits: torch.Tensor, prompts: Prompts) -> Results:
    return {f"logits/{name}": logits[row : row + 1, : ids.shape[1]] for row, (name, ids) in enumerate(prompts.items())}


def _differing(weights: Weights, source: Path, progress: Progress) -> tuple[str, ...]:
    """Return the names of the folder's tensors that the checkpoint holds otherwise.

    Raises:
        ConvertError: A tensor holds a value that is not finite.
    """
    files = HfWeights(source)
    progress.start("comparing weights", files.total_bytes)
    found, broken = [], []
    for name, tensor in hf_tensors(weights.shape).items():
        theirs = files.map(name)
        if not same_bits(weights.hf_tensor(tensor, dtype=weights.dtype), theirs, dtype=weights.dtype):
            found.append(name)
        if not bool(theirs.isfinite().all()):
            broken.append(name)
        progress.advance(theirs.numel() * theirs.element_size())
        files.release(name)
        weights.release()
    if broken:
        raise ConvertError(
            f"{source} holds NaN or infinite values in {some(broken, most=4)}, so the model computes nothing; nothing "
            "was written: get an undamaged copy of the folder (--no-verify imports it as it is)"
        )
    return tuple(found)


def _dtypes(source: Path, shape: ModelShape) -> set[torch.dtype]:
    files = HfWeights(source)
    return {files.dtype(name) for name in hf_tensors(shape)}


def _check_ram(source: Path, *, layout: Layout, limit: int) -> None:
    """Refuse a proof for which a process may need more than ``limit`` bytes."""
    shape, files = read_shape(source), HfWeights(source)
    check_inventory(files, shape)
    largest = max(hf_tensors(shape).values(), key=lambda tensor: math.prod(tensor.shape))
    elements = math.prod(largest.shape)
    logits_bytes = 4 * 2 * min(_TOKENS, shape.max_position_embeddings) * shape.vocab_size
    item = files.dtype(largest.name).itemsize
    # Here: a matrix of the file beside the checkpoint's and a copy of it; then in fp32, with both models' logits.
    theirs = max(elements * (3 * item + 1), elements * (item + 4) + 3 * logits_bytes)
    # A rank: its part of the checkpoint's pages, a copy, and fp32; logits of its part, gathered, and joined.
    ours = elements // layout.tp_size * (2 * item + 4) + 4 * logits_bytes
    needed = _BASE_BYTES + max(theirs, ours)
    if needed > limit:
        raise ConvertError(
            f"the proof may need up to {needed / 1e9:.2f} GB of memory for {largest.name}, --max-ram allows "
            f"{limit / 1e9:.2f}; allow more, or leave the proof out with --no-verify"
        )
