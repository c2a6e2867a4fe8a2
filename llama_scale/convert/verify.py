"""Verify: the sharded model and transformers' model give the same logits, and hold the same weights.

Two independent checks. The logits come from the real model on real gloo processes at the checkpoint's layout, so they
do not depend on the mapping table; the weights are compared tensor by tensor through the table, so that a difference
too small to move the logits of a barely trained model is found as well.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from llama_scale.checkpoint.manifest import Manifest
from llama_scale.checkpoint.reader import CheckpointReader
from llama_scale.convert.export_hf import source_group, stored_dtype
from llama_scale.convert.folders import Progress, Silence
from llama_scale.convert.hf_config import read_shape
from llama_scale.convert.hf_weights import HfWeights
from llama_scale.convert.import_hf import check_inventory
from llama_scale.convert.mapping import hf_tensors
from llama_scale.convert.models import Prompts, Results, reference_model, save_prompts, sharded_model, stop_ids
from llama_scale.convert.proof import Comparison, Proof
from llama_scale.convert.request import Request
from llama_scale.convert.shards import Layout, check_layout, even_stage_layers, valid_tp_sizes
from llama_scale.errors import CheckpointError, ConvertError
from llama_scale.layout.boxes import Box

MAX_RANKS = 8
REAL_PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "In 1969, the first people walked on the Moon. They",
)


def verify(
    checkpoint: Path,
    hf: Path,
    *,
    layout: Layout | None = None,
    num_tokens: int = 128,
    generate: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Proof:
    """Compare a checkpoint's sharded model with a Hugging Face folder.

    Args:
        checkpoint: A complete checkpoint of any layout.
        hf: Folder with config.json and safetensors.
        layout: Degrees for the forward pass; None: the checkpoint's own, made smaller if it has more than 8 ranks.
        num_tokens: Length of the random prompt; at most the model's context.
        generate: Also compare this many greedy tokens after each prompt.
        seed: Of the random prompt.
        progress: Is told of the weights compared.

    Raises:
        ConvertError: One of the two cannot be read or run, or they are models of different numbers. A difference in
            weights or logits is no error here: see ``Proof.require``.
    """
    try:
        reader = CheckpointReader(checkpoint)
        _check_same_numbers(reader.manifest, hf)
        chosen, note = _choose_layout(reader.manifest, layout)
        stages = check_layout(reader.manifest.shape, chosen)
        weights = HfWeights(hf)
        check_inventory(weights, reader.manifest.shape)
        precision = _Precision(reader.manifest, weights)
        prompts = _prompts(hf, reader.manifest, num_tokens=num_tokens, generate=generate, seed=seed)
        with tempfile.TemporaryDirectory(prefix="llama-scale-verify-") as name:
            folder = Path(name)
            save_prompts(prompts, folder / "prompts.safetensors")
            request = Request(
                checkpoint=str(Path(checkpoint).resolve()),
                group=precision.group,
                round_to=None if precision.round_to is None else str(precision.round_to).removeprefix("torch."),
                tp_size=chosen.tp_size,
                pp_size=chosen.pp_size,
                vp_size=chosen.vp_size,
                stage_layers=tuple(len(stages[p][v].layers) for v in range(chosen.vp_size) for p in range(len(stages))),
                prompts=str(folder / "prompts.safetensors"),
                generate=generate,
                stop_ids=stop_ids(hf),
                out=str(folder / "sharded.safetensors"),
            )
            with sharded_model(request, folder=folder):
                # Meanwhile: the ranks' imports take as long as this.
                differing = _compare_weights(reader, weights, precision, progress=progress or Silence())
                expected = reference_model(hf, prompts, round_to=precision.round_to, generate=generate)
            found = load_file(request.out)
        return Proof(
            checkpoint=str(checkpoint),
            hf=str(hf),
            layout={"tensor": chosen.tp_size, "pipeline": chosen.pp_size, "virtual": chosen.vp_size},
            note="; ".join(text for text in (note, precision.note) if text),
            tensors=len(hf_tensors(reader.manifest.shape)),
            differing=tuple(differing),
            comparisons=tuple(
                compare(name, tokens, expected=expected, found=found, generate=generate)
                for name, tokens in prompts.items()
            ),
        )
    except CheckpointError as error:
        raise ConvertError(str(error)) from error


def _check_same_numbers(manifest: Manifest, hf: Path) -> None:
    theirs, ours = read_shape(hf).model_dump(), manifest.shape.model_dump()
    wrong = [f"{key} is {theirs[key]} there and {ours[key]} here" for key in ours if theirs[key] != ours[key]]
    if wrong:
        raise ConvertError(f"{hf} is another model than the checkpoint: {'; '.join(wrong)}")


class _Precision:
    """In which element type the two sides are compared: the coarser of theirs, as the finer one was rounded to it.

    Attributes:
        group: Group of the checkpoint that holds what the folder should.
        round_to: Both sides' weights are rounded to this; None: they are fp32 on both sides.
        note: What to tell about it.
    """

    def __init__(self, manifest: Manifest, weights: HfWeights) -> None:
        theirs = {weights.dtype(name) for name in weights.names}
        self.group = source_group(manifest, torch.float32 if theirs == {torch.float32} else torch.bfloat16)
        ours = torch.float32 if self.group == "master" else stored_dtype(manifest)
        coarse = torch.bfloat16 in theirs or ours == torch.bfloat16
        self.round_to = torch.bfloat16 if coarse else None
        self.note = "weights rounded to bf16 on both sides" if coarse and theirs != {ours} else ""


def _choose_layout(manifest: Manifest, asked: Layout | None) -> tuple[Layout, str]:
    """Return the layout of the forward pass and a note if it is not the one that was meant."""
    shape, saved = manifest.shape, manifest.topology
    if asked is None:
        chunks = saved.stages
        counts = tuple(len(stage[v]) for v in range(len(chunks[0])) for stage in chunks) if chunks else None
        wanted = Layout(
            tp_size=saved.tp_size,
            pp_size=saved.pp_size,
            vp_size=len(chunks[0]) if chunks else 1,
            stage_layers=counts or even_stage_layers(shape.num_layers, pp_size=saved.pp_size),
        )
    else:
        wanted = asked
    ranks = wanted.tp_size * wanted.pp_size
    if ranks <= MAX_RANKS:
        if wanted.stage_layers is None and wanted.vp_size == 1 and wanted.pp_size <= shape.num_layers:
            counts = even_stage_layers(shape.num_layers, pp_size=wanted.pp_size)
            wanted = Layout(tp_size=wanted.tp_size, pp_size=wanted.pp_size, stage_layers=counts)
        return wanted, ""
    sizes = [
        (t, p)
        for t in valid_tp_sizes(shape)
        for p in range(1, min(wanted.pp_size, shape.num_layers) + 1)
        if t <= wanted.tp_size and t * p <= MAX_RANKS
    ]
    # Both kinds of parallelism stay in play where they can; then as many ranks as possible.
    tp_size, pp_size = max(sizes, key=lambda s: ((s[0] > 1) + (s[1] > 1), s[0] * s[1], s[0]))
    note = (
        f"verified at tensor={tp_size} x pipeline={pp_size}: tensor={wanted.tp_size} x pipeline={wanted.pp_size} "
        f"would need {ranks} processes, more than {MAX_RANKS}"
    )
    counts = even_stage_layers(shape.num_layers, pp_size=pp_size)
    return Layout(tp_size=tp_size, pp_size=pp_size, stage_layers=counts), note


def _prompts(hf: Path, manifest: Manifest, *, num_tokens: int, generate: int, seed: int) -> Prompts:
    """Return prompt -> token ids ``[1, seq]``: random ones, and texts where the folder has a tokenizer."""
    shape = manifest.shape
    longest = max(1, shape.max_position_embeddings - generate)
    generator = torch.Generator().manual_seed(seed)
    prompts = {"random": torch.randint(shape.vocab_size, (1, min(num_tokens, longest)), generator=generator)}
    if (hf / "tokenizer.json").is_file() or (hf / "tokenizer.model").is_file():
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(hf)
        except Exception as error:  # whatever a damaged tokenizer makes the library raise
            raise ConvertError(f"transformers cannot load the tokenizer of {hf}: {error}") from error
        for text in REAL_PROMPTS:
            ids = tokenizer(text, return_tensors="pt")["input_ids"][:, :longest]
            if ids.shape[1] and int(ids.max()) < shape.vocab_size:
                prompts[text] = ids
    return prompts


def _compare_weights(
    reader: CheckpointReader, weights: HfWeights, precision: _Precision, *, progress: Progress
) -> list[str]:
    """Return the names of Hugging Face tensors that are not, bit by bit, what an export of the checkpoint holds."""
    differing = []
    progress.start("comparing weights", weights.total_bytes)
    for tensor in hf_tensors(reader.manifest.shape).values():
        theirs = weights.map(tensor.name)
        for part in tensor.slices:
            ours = reader.read(precision.group, part.native_name, part.native_box)
            there = theirs[part.hf_box.slices_within(Box.whole(tensor.shape))]
            if not _same_bits(ours.view(there.shape), there, round_to=precision.round_to):
                differing.append(tensor.name)
                break
        progress.advance(theirs.numel() * theirs.element_size())
        weights.release(tensor.name)
        reader.release()
    return differing


def _same_bits(one: torch.Tensor, two: torch.Tensor, *, round_to: torch.dtype | None) -> bool:
    dtype = round_to or torch.float32
    first, second = (x.to(dtype).contiguous().view(torch.uint8) for x in (one, two))
    return bool(torch.equal(first, second))


def compare(
    name: str,
    tokens: torch.Tensor,
    *,
    expected: Results,
    found: Results,
    generate: int,
) -> Comparison:
    """Compare what the two models gave for one prompt.

    Args:
        name: The prompt.
        tokens: Its ids, ``[1, seq]``.
        expected: Results of transformers' model.
        found: Results of the sharded model.
        generate: Greedy tokens that were asked for.
    """
    wanted, got = expected[f"logits/{name}"], found[f"logits/{name}"]
    diff, scale = (wanted - got).abs().max().item(), wanted.abs().max().item()
    length = equal = None
    if generate:
        theirs, ours = expected[f"tokens/{name}"].tolist(), found[f"tokens/{name}"].tolist()
        length = max(len(theirs), len(ours))
        pairs = enumerate(zip(theirs, ours, strict=False))
        equal = next((i for i, (a, b) in pairs if a != b), min(len(theirs), len(ours)))
    return Comparison(
        prompt=name,
        tokens=tokens.shape[1],
        max_abs_diff=diff,
        scale=scale,
        relative=diff / scale if scale else float("nan"),
        same_argmax=(wanted.argmax(-1) == got.argmax(-1)).float().mean().item(),
        generated=length,
        generated_equal=equal,
    )
