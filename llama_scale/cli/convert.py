"""``llama-scale convert``: Hugging Face folders to sharded checkpoints and back, with proof."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llama_scale.cli.convert_import import import_deepspeed, refuse_deepspeed, show_import
from llama_scale.cli.convert_output import (
    exported,
    import_adapters,
    need_libraries,
    progress_bar,
    render,
    show,
)
from llama_scale.cli.output import emit, emit_json, say
from llama_scale.cli.source_options import TrustCode
from llama_scale.errors import ConvertError

if TYPE_CHECKING:
    from llama_scale.convert.shards import Layout

app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    add_completion=False,
    help="Convert between Hugging Face folders and sharded checkpoints, and prove it. Exit status 6: it failed; "
    "nothing is left of an output that could not be finished or proven.",
)

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}

Tensor = Annotated[int, typer.Option("--tensor", help="Tensor parallel degree.")]
Pipeline = Annotated[int, typer.Option("--pipeline", help="Pipeline stages.")]
Virtual = Annotated[int, typer.Option("--virtual", help="Model chunks per pipeline stage.")]
StageLayers = Annotated[
    str | None, typer.Option("--stage-layers", help="Layers of each stage, e.g. 7,8,8,7, when they are not equal.")
]
Base = Annotated[
    Path | None,
    typer.Option(
        help="Checkpoint or Hugging Face folder of the base that adapters were trained on; default: where it was then."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.callback()
def _root() -> None:
    need_libraries("convert")


@app.command("import")
def import_(
    *,
    source: Annotated[
        Path | None, typer.Option("--from", help="Hugging Face folder: config.json and safetensors.")
    ] = None,
    target: Annotated[Path, typer.Option("--to", help="New checkpoint folder.")],
    peft: Annotated[
        list[str] | None,
        typer.Option(help="Instead of --from: [NAME=]FOLDER of an adapter that PEFT saved; repeatable. Needs --base."),
    ] = None,
    base: Annotated[Path | None, typer.Option(help="With --peft: checkpoint of the model it was trained on.")] = None,
    spec: Annotated[
        Path | None, typer.Option(help="Of a folder that DeepSpeed itself has saved: the spec it was trained with.")
    ] = None,
    tensor: Tensor = 1,
    pipeline: Pipeline = 1,
    virtual: Virtual = 1,
    stage_layers: StageLayers = None,
    vocab_pad_multiple: Annotated[
        int, typer.Option(help="In memory the vocabulary is padded to a multiple of this x tensor.")
    ] = 128,
    dtype: Annotated[str | None, typer.Option(help="fp32 or bf16; default: what the files hold.")] = None,
    max_ram: Annotated[
        str | None, typer.Option(help="Refuse before starting if more memory may be needed, e.g. 1.5GB.")
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify", help="Prove the result before it appears: against transformers on the folder."
        ),
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Make a sharded checkpoint of a Hugging Face folder, for any tensor and pipeline degree.

    Example: `llama-scale convert import --from SmolLM2-135M --to base --tensor 3 --pipeline 2`.

    A run starts from it with `model.init_from`. One tensor is in memory at a time; report.json accounts for every
    element.
    """
    _check_dtype(dtype)
    plain = (tensor, pipeline, virtual, stage_layers, dtype, max_ram) == (1, 1, 1, None, None, None)
    if peft or base is not None:
        if not peft or base is None:
            here, missing = ("--peft", "--base CHECKPOINT") if peft else ("--base", "--peft [NAME=]FOLDER")
            raise ConvertError(f"{here} is given without {missing}: an adapter is imported onto the base it belongs to")
        if source is not None or spec is not None or not plain:
            raise ConvertError(
                "--peft and --base go with --to alone: the checkpoint is one shard of what was trained; leave --from, "
                "--spec, the layout, --dtype and --max-ram out"
            )
        show_import(import_adapters(peft or [], target, base=base), target, layout=(1, 1), as_json=as_json)
        return
    if source is None:
        raise ConvertError("nothing to import is named; give --from HF_DIR, or --peft FOLDER with --base CHECKPOINT")
    limit = None if max_ram is None else parse_size(max_ram, option="--max-ram")
    layout = _layout(
        tensor=tensor,
        pipeline=pipeline,
        virtual=virtual,
        stage_layers=stage_layers,
        vocab_pad_multiple=vocab_pad_multiple,
    )
    if spec is None:
        refuse_deepspeed(source)
        from llama_scale.convert.import_hf import import_hf  # lazy: keeps torch out of --help
        from llama_scale.convert.import_proof import import_proof

        with progress_bar() as bar:
            proof = import_proof(source, layout=layout, max_ram_bytes=limit, progress=bar) if verify else None
            manifest = import_hf(
                source, target, layout=layout, dtype=dtype, max_ram_bytes=limit, proof=proof, progress=bar
            )
    else:
        if not plain:
            raise ConvertError(
                "--spec does not go with a layout, --dtype or --max-ram: a folder of DeepSpeed becomes one shard, in "
                "the element type that it has; cut that with `llama-scale convert reshard`"
            )
        manifest = import_deepspeed(source, target, spec=spec)
    show_import(manifest, target, layout=(tensor, pipeline), as_json=as_json, from_hf=spec is None)


class _Form(StrEnum):
    """What `export` writes."""

    HF = "hf"
    MERGED = "merged"
    PEFT = "peft"
    MIXTURE = "mixture"
    EMBEDDINGS = "sentence-transformers"


@app.command()
def export(
    *,
    source: Annotated[Path, typer.Option("--from", help="Run folder (its newest checkpoint) or checkpoint folder.")],
    target: Annotated[Path, typer.Option("--to", help="New folder.")],
    form: Annotated[
        _Form,
        typer.Option(
            "--as",
            help="hf: the model as it is; merged: the base with one adapter in its matrices; peft: one adapter as PEFT "
            "keeps it; mixture: base, adapters and mixture, for trust_remote_code; sentence-transformers: a task's "
            "embedding model.",
        ),
    ] = _Form.HF,
    adapter: Annotated[str | None, typer.Option(help="Which adapter; default: the only one.")] = None,
    task: Annotated[
        str | None, typer.Option(help="Which task, for --as sentence-transformers; default: the only one.")
    ] = None,
    base: Base = None,
    dtype: Annotated[str | None, typer.Option(help="fp32 or bf16; default: the checkpoint's.")] = None,
    shard_size: Annotated[
        str | None, typer.Option(help="Most weights in one file, e.g. 500MB.", show_default="5GB")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="SentencePiece .model or tokenizer folder; default: the run's own.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Prove the result before it appears: logits and weights.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Make a folder that transformers (or PEFT) loads of a checkpoint of any layout, with config and report.json.

    Example: `llama-scale convert export --from runs/NAME --to model --as merged --adapter a`.
    """
    _check_dtype(dtype)
    shard_bytes = None if shard_size is None else parse_size(shard_size, option="--shard-size")
    from llama_scale.convert.folders import find_checkpoint  # lazy: keeps torch out of --help
    from llama_scale.convert.forms import export as write

    checkpoint = find_checkpoint(source)
    with progress_bar() as bar:
        report = write(
            checkpoint,
            target,
            form=form.value,
            adapter=adapter,
            task=task,
            base=base,
            dtype=dtype,
            shard_bytes=shard_bytes,
            tokenizer=tokenizer,
            proven=verify,
            progress=bar,
        )
    if report.get("tokenizer", "") is None:
        say(f"note: {target} has no tokenizer, because the checkpoint came without one; add it with --tokenizer PATH")
    if report.get("origin_missing") is not None:
        from llama_scale.convert.origin import lost_with

        say(f"note: {lost_with(report['origin_missing'])}")
    result, text = exported(report, target=target, checkpoint=checkpoint)
    show(result, as_json=as_json, text=text)


@app.command()
def verify(
    *,
    source: Annotated[Path, typer.Option("--from", help="Run folder (its newest checkpoint) or checkpoint folder.")],
    hf: Annotated[Path, typer.Option("--hf", help="Folder to compare it with, of any form that `export` writes.")],
    adapter: Annotated[str | None, typer.Option(help="Which adapter a merged or PEFT folder holds.")] = None,
    base: Base = None,
    tensor: Annotated[int | None, typer.Option(help="Tensor parallel degree; default: the checkpoint's.")] = None,
    pipeline: Annotated[int | None, typer.Option(help="Pipeline stages; default: the checkpoint's.")] = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Length of the random prompt.", show_default="128, or what the context has room for"),
    ] = None,
    generate: Annotated[int, typer.Option(min=0, help="Also compare so many greedy tokens after each prompt.")] = 0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the random prompt.")] = 0,
    trust_remote_code: TrustCode = False,
    as_json: AsJson = False,
) -> None:
    """Compare the sharded model, run on real processes, with transformers' model: logits, weights, greedy tokens.

    Example: `llama-scale convert verify --from runs/NAME --hf model --generate 16`.
    """
    from llama_scale.convert.folders import find_checkpoint  # lazy: keeps torch out of --help
    from llama_scale.convert.shards import Layout
    from llama_scale.convert.verify import verify as verify_folder

    checkpoint = find_checkpoint(source)
    layout = None
    if tensor is not None or pipeline is not None:
        layout = Layout(tp_size=tensor or 1, pp_size=pipeline or 1)
    with progress_bar() as bar:
        proof = verify_folder(
            checkpoint,
            hf,
            adapter=adapter,
            base=base,
            layout=layout,
            num_tokens=tokens,
            generate=generate,
            seed=seed,
            trust_code=trust_remote_code,
            progress=bar,
        )
    if as_json:
        emit_json(proof.to_data())
    else:
        emit(render(proof))
    proof.require()


@app.command()
def reshard(
    *,
    source: Annotated[Path, typer.Option("--from", help="Run folder (its newest checkpoint) or checkpoint folder.")],
    target: Annotated[Path, typer.Option("--to", help="New checkpoint folder.")],
    tensor: Tensor = 1,
    pipeline: Pipeline = 1,
    virtual: Virtual = 1,
    stage_layers: StageLayers = None,
    as_json: AsJson = False,
) -> None:
    """Cut a checkpoint, optimizer state included, for another layout; every element stays as it is.

    Example: `llama-scale convert reshard --from runs/NAME --to cut --tensor 2 --pipeline 4`.

    Training resumes from any layout without this.
    """
    from llama_scale.convert.folders import find_checkpoint  # lazy: keeps torch out of --help
    from llama_scale.convert.reshard import reshard as write

    checkpoint = find_checkpoint(source)
    layout = _layout(tensor=tensor, pipeline=pipeline, virtual=virtual, stage_layers=stage_layers)
    with progress_bar() as bar:
        manifest = write(checkpoint, target, layout=layout, progress=bar)
    result = {
        "checkpoint": str(target),
        "from": str(checkpoint),
        "step": manifest.step,
        "shards": len(manifest.shards),
        "groups": sorted(manifest.tensors),
        "parameter_digest": manifest.parameter_digest,
    }
    text = f"{target}: step {manifest.step} in {len(manifest.shards)} shards, tensor={tensor} x pipeline={pipeline}"
    show(result, as_json=as_json, text=text)


def parse_size(text: str, *, option: str) -> int:
    """Return the bytes of ``500MB``, ``1.5 GB``, ``2GiB`` or a plain number.

    Raises:
        ConvertError: It is no size above 0.
    """
    match = _SIZE.fullmatch(text.strip())
    size = 0
    if match is not None:
        base = 1024 if match[3] else 1000
        size = int(float(match[1]) * base ** _POWERS[match[2].upper()])
    if size <= 0:
        raise ConvertError(f"{option} {text!r} is no size; write e.g. 500MB, 1.5GB or 2GiB")
    return size


def _check_dtype(dtype: str | None) -> None:
    if dtype not in (None, "fp32", "bf16"):
        raise ConvertError(f"--dtype {dtype!r} is not known; use fp32 or bf16")


def _layout(
    *, tensor: int, pipeline: int, virtual: int, stage_layers: str | None, vocab_pad_multiple: int = 128
) -> Layout:
    from llama_scale.convert.shards import Layout

    if virtual > 1 and pipeline == 1:
        raise ConvertError(f"--virtual {virtual} cuts the chunks of pipeline stages; give --pipeline above 1 too")
    counts: tuple[int, ...] | None = None
    if stage_layers is not None:
        try:
            counts = tuple(int(part) for part in stage_layers.split(","))
        except ValueError:
            raise ConvertError(f"--stage-layers {stage_layers!r} is no list of numbers; write e.g. 7,8,8,7") from None
    return Layout(
        tp_size=tensor,
        pp_size=pipeline,
        vp_size=virtual,
        stage_layers=counts,
        vocab_pad_multiple=vocab_pad_multiple,
    )
