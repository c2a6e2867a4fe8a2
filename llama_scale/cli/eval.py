"""``llama-scale eval``: task metrics of a run, a checkpoint or a Hugging Face folder, several models side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llama_scale.cli.convert_output import need_libraries
from llama_scale.cli.output import emit, emit_json, say
from llama_scale.cli.runs_dir import DEFAULT_RUNS, RunsDir
from llama_scale.cli.source_options import LARGEST_SEED, ModelName, Step, TrustCode
from llama_scale.errors import LaunchError

if TYPE_CHECKING:
    from llama_scale.evaluation.answering import Answering
    from llama_scale.evaluation.source import Source
    from llama_scale.evaluation.tasks import Protocol, Result

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command(name="eval")
def eval_(
    model: ModelName,
    *,
    tasks: Annotated[
        list[str] | None, typer.Option("--task", help="Task of the spec; repeatable. Default: all of them.")
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            help="Who answers: base, an adapter's name, mixture, or `own` (each task's own adapter); repeatable, shown "
            "side by side, compared with the first. Default: own.",
        ),
    ] = None,
    spec: Annotated[
        Path | None, typer.Option("--spec", help="Spec whose tasks are evaluated; default: the run's own.")
    ] = None,
    step: Step = None,
    split: Annotated[str, typer.Option(help="Part of the data: train, validation or test.")] = "test",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Most examples a task: a subset that --seed fixes. Default: all.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of the subset, the bootstrap and sampling.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences of one forward pass.")] = 8,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: always the most likely token.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Sample from the likeliest tokens of this sum.")
    ] = 1.0,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap samples of the confidence intervals.")] = 1000,
    out: Annotated[
        Path | None, typer.Option(help="JSON file of the result; default for a run: eval/ in its folder.")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="JSONL file: prediction and reference of each example.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    trust_remote_code: TrustCode = False,
    runs_dir: RunsDir = DEFAULT_RUNS,
) -> None:
    """Score a model on the tasks of its spec, with 95% bootstrap confidence intervals.

    Example: `llama-scale eval RUN --with base --with own --with mixture --limit 200`.

    Exit status 5: there is no such model, task or example.
    """
    need_libraries("eval")
    from llama_scale.data.examples import SPLITS

    if split not in SPLITS:
        raise typer.BadParameter(f"{split!r} is none of {', '.join(SPLITS)}", param_hint="--split")
    for option, given in (("--task", tasks or []), ("--with", models or [])):
        twice = sorted({name for name in given if given.count(name) > 1})
        if twice:
            raise typer.BadParameter(f"{', '.join(twice)} is given twice; once is enough", param_hint=option)
    for path in (out, predictions):
        if path is not None and path.is_dir():
            raise LaunchError(f"{path} is a folder; name a file in it")
    from llama_scale.evaluation.answering import Sampling, answering  # lazy: keeps torch out of --help
    from llama_scale.evaluation.source import open_source
    from llama_scale.evaluation.tasks import Protocol, to_data

    protocol = Protocol(split=split, limit=limit, seed=seed, resamples=resamples)
    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
    with open_source(model, runs_dir=runs_dir, step=step, spec=spec, progress=say) as source:
        made = answering(source, sampling=sampling, batch_size=batch_size, trust_code=trust_remote_code)
        results = list(_results(made, tasks or made.task_names(), models or ["own"], protocol))
        data = {
            "model": model,
            "checkpoint": None if source.checkpoint is None else str(source.checkpoint),
            "step": None if source.manifest is None else source.manifest.step,
            "split": split,
            "seed": seed,
            "level": protocol.level,
            "results": to_data(results, protocol),
        }
        target = out or _default_target(source, split)
    _write(data, results, out=target, predictions=predictions)
    if as_json:
        emit_json(data)
    else:
        emit(_tables(data))


def _results(made: Answering, tasks: list[str], models: list[str], protocol: Protocol) -> Any:
    from llama_scale.cli.count_bar import count_bar  # lazy: keeps rich out of --help
    from llama_scale.evaluation.tasks import choose_examples, evaluate

    for name in tasks:
        task = made.task(name)
        examples = choose_examples(task, protocol)
        for who in models:
            chosen = made.choose(who, task=name)
            with count_bar(f"{name} with {chosen}", total=len(examples)) as done:
                made.model.on_advance = done.advance
                yield evaluate(task, made.model, examples, name=chosen, protocol=protocol)


def _default_target(source: Source, split: str) -> Path | None:
    if source.run is None or source.checkpoint is None:
        return None
    return source.run / "eval" / f"{source.checkpoint.name}-{split}.json"


def _write(data: dict[str, Any], results: list[Result], *, out: Path | None, predictions: Path | None) -> None:
    import json

    from llama_scale.runs.atomic import write_atomically

    lines = [
        json.dumps(
            {
                "task": result.task,
                "model": result.model,
                "prediction": outcome.prediction,
                "reference": outcome.reference,
                "scores": dict(outcome.scores),
            },
            ensure_ascii=False,
        )
        for result in results
        for outcome in result.outcomes
    ]
    texts = {out: json.dumps(data, indent=2, ensure_ascii=False) + "\n", predictions: "\n".join(lines) + "\n"}
    for path, text in texts.items():
        if path is None:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text)
        except OSError as error:
            raise LaunchError(f"{path} cannot be written: {error.strerror}; choose another file") from error
        say(f"written: {path}")


def _tables(data: dict[str, Any]) -> str:
    """Return one table a task: metrics down, models across, each with its interval."""
    from llama_scale.cli.plan_tables import show, table  # lazy: keeps rich out of --help

    parts = []
    for name in dict.fromkeys(result["task"] for result in data["results"]):
        results = [result for result in data["results"] if result["task"] == name]
        made = table("", "metric", *(result["model"] for result in results))
        for metric in results[0]["metrics"]:
            made.add_row(metric, *(_cell(result["metrics"].get(metric)) for result in results))
        title = f"{name}: {results[0]['examples']} {data['split']} examples, {data['level']:.0%} intervals"
        parts.append(f"{title}\n\n{show([made], width=max(80, 20 + 30 * len(results)))}")
    return "\n".join(parts)


def _cell(found: dict[str, Any] | None) -> str:
    return "-" if found is None else f"{found['value']:.4g} [{found['low']:.4g}, {found['high']:.4g}]"
