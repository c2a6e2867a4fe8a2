"""Verify: the sharded model and transformers' model give the same logits, and hold the same weights.

Two independent checks. The logits come from the real model on real gloo processes at the checkpoint's layout, so they
do not depend on the mapping table; the weights are compared tensor by tensor through the table, so that a difference
too small to move the logits of a barely trained model is found as well.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from llama_scale.checkpoint.manifest import Manifest
from llama_scale.convert.compared import Compared, compared
from llama_scale.convert.folders import Progress, Silence, checkpoint_faults, has_tokenizer
from llama_scale.convert.foreign_code import foreign_code
from llama_scale.convert.models import Prompts, Results, reference_results, save_prompts, sharded_model, stop_ids
from llama_scale.convert.proof import Comparison, Proof
from llama_scale.convert.reference import load_text_tokenizer
from llama_scale.convert.request import ADAPTER, Request
from llama_scale.convert.shards import Layout, check_layout, even_stage_layers, valid_tp_sizes
from llama_scale.convert.weights import Weights
from llama_scale.errors import ConvertError

MAX_RANKS = 8
_PROMPT = 128
REAL_PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "In 1969, the first people walked on the Moon. They",
)


@checkpoint_faults()
def verify(
    checkpoint: Path,
    hf: Path,
    *,
    adapter: str | None = None,
    base: Path | None = None,
    layout: Layout | None = None,
    num_tokens: int | None = None,
    generate: int = 0,
    seed: int = 0,
    trust_code: bool = False,
    progress: Progress | None = None,
) -> Proof:
    """Compare a checkpoint's sharded model with an exported folder: plain, mixture (each adapter too) or PEFT's.

    Args:
        checkpoint: A complete checkpoint of any layout.
        hf: The folder.
        adapter: Which adapter a plain or PEFT folder is of; None: report.json or the only one says.
        base: Where the checkpoint's frozen base is now; None: where it was.
        layout: Degrees for the forward pass; None: the checkpoint's own, made smaller if it has more than 8 ranks.
        num_tokens: Length of the random prompt; None: 128, or what the context has room for.
        generate: Also compare this many greedy tokens after each prompt.
        seed: Of the random prompt.
        trust_code: Run Python code of the folder that no export writes.
        progress: Is told of the weights compared.

    Raises:
        ConvertError: One of the two cannot be read or run, or they are models of different numbers. A difference in
            weights or logits is no error here: see ``Proof.require``.
    """
    weights = Weights(checkpoint, base=base)
    other = compared(weights, hf, adapter=adapter, trust_code=trust_code)
    chosen, note = choose_layout(weights.manifest, layout)
    stages = check_layout(weights.shape, chosen)
    prompts = _prompts(
        _tokenizer(hf, trust_code=trust_code), weights.manifest, num_tokens=num_tokens, generate=generate, seed=seed
    )
    labels = {_label(choice, prompt, other.choices): (choice, prompt) for choice in other.choices for prompt in prompts}
    stop = stop_ids(hf)
    with tempfile.TemporaryDirectory(prefix="llama-scale-verify-") as name:
        folder = Path(name)
        save_prompts({label: prompts[prompt] for label, (_, prompt) in labels.items()}, folder / "prompts.safetensors")
        request = Request(
            checkpoint=str(Path(checkpoint).resolve()),
            base=None if weights.base is None else str(weights.base.folder.resolve()),
            dtype=str(other.dtype).removeprefix("torch."),
            tp_size=chosen.tp_size,
            pp_size=chosen.pp_size,
            vp_size=chosen.vp_size,
            stage_layers=tuple(len(stages[p][v].layers) for v in range(chosen.vp_size) for p in range(len(stages))),
            prompts=str(folder / "prompts.safetensors"),
            choices={label: choice for label, (choice, _) in labels.items()},
            generate=generate,
            stop_ids=stop,
            out=str(folder / "sharded.safetensors"),
        )
        with sharded_model(request, folder=folder):
            # Meanwhile: the ranks' imports take as long as this.
            reporter = progress or Silence()
            reporter.start("comparing weights", other.total_bytes)
            differing = tuple(other.differing(reporter))
            expected = _expected(other, prompts, labels, stop=stop, generate=generate)
        found = load_file(request.out)
    return Proof(
        checkpoint=str(checkpoint),
        hf=str(hf),
        layout={"tensor": chosen.tp_size, "pipeline": chosen.pp_size, "virtual": chosen.vp_size},
        note="; ".join(text for text in (note, other.note) if text),
        tensors=other.tensors,
        differing=differing,
        comparisons=tuple(
            compare(label, prompts[prompt], expected=expected, found=found, generate=generate)
            for label, (_, prompt) in labels.items()
        ),
    )


def _label(choice: str, prompt: str, choices: tuple[str, ...]) -> str:
    """Name a comparison: by the prompt alone where there is only one thing to compare."""
    return prompt if len(choices) == 1 else f"{choice.removeprefix(ADAPTER)}: {prompt}"


def _expected(
    other: Compared, prompts: Prompts, labels: Mapping[str, tuple[str, str]], *, stop: tuple[int, ...], generate: int
) -> Results:
    """Return what the folder's model gives for each comparison."""
    model = other.model()
    results: Results = {}
    for choice in other.choices:
        other.choose(model, choice)
        own = {label: prompts[prompt] for label, (its, prompt) in labels.items() if its == choice}
        results |= reference_results(model, own, stop=stop, generate=generate)
    return results


def choose_layout(manifest: Manifest, asked: Layout | None) -> tuple[Layout, str]:
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


def _tokenizer(hf: Path, *, trust_code: bool) -> Any:
    """Return the folder's tokenizer; None: it has none, or one that is code which may not run."""
    if not has_tokenizer(hf) or (foreign_code(hf) is not None and not trust_code):
        return None
    return load_text_tokenizer(hf, trust_code=trust_code)


def _prompts(tokenizer: Any, manifest: Manifest, *, num_tokens: int | None, generate: int, seed: int) -> Prompts:
    """Return prompt -> token ids ``[1, seq]``: random ones, and texts where there is a tokenizer."""
    shape = manifest.shape
    longest = max(1, shape.max_position_embeddings - generate)
    if num_tokens is not None and num_tokens > longest:
        raise ConvertError(
            f"a prompt of {num_tokens} tokens and {generate} more do not fit the model's context of "
            f"{shape.max_position_embeddings}; give at most {longest}"
        )
    generator = torch.Generator().manual_seed(seed)
    length = min(_PROMPT, longest) if num_tokens is None else num_tokens
    prompts = {"random": torch.randint(shape.vocab_size, (1, length), generator=generator)}
    if tokenizer is not None:
        for text in REAL_PROMPTS:
            ids = tokenizer(text, return_tensors="pt")["input_ids"][:, :longest]
            if ids.shape[1] and int(ids.max()) < shape.vocab_size:
                prompts[text] = ids
    return prompts


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
        relative=diff / scale if scale else diff if diff == 0 else float("nan"),
        same_argmax=(wanted.argmax(-1) == got.argmax(-1)).float().mean().item(),
        generated=length,
        generated_equal=equal,
    )
