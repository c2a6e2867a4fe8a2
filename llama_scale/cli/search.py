"""``llama-scale search``: index a corpus with a trained embedding model, and find documents."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llama_scale.cli.convert_output import need_libraries
from llama_scale.cli.output import emit, emit_json, say
from llama_scale.cli.runs_dir import DEFAULT_RUNS, RunsDir
from llama_scale.cli.source_options import ModelName, Step, TrustCode
from llama_scale.cli.text_lines import text_lines
from llama_scale.columns import WIDTH
from llama_scale.errors import LaunchError

if TYPE_CHECKING:
    from llama_scale.evaluation.search_index import Hit

app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    add_completion=False,
    help="Semantic search with a model that was trained on a task of kind semantic_search. Exit status 5: no such "
    "model, task, corpus or index.",
)
TaskName = Annotated[str | None, typer.Option("--task", help="Task of kind semantic_search, if the spec has several.")]
SpecFile = Annotated[Path | None, typer.Option("--spec", help="Spec with the task; default: the run's own.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Texts of one forward pass.")]


@app.callback()
def _root() -> None:
    need_libraries("search")


@app.command()
def index(
    model: ModelName,
    corpus: Annotated[Path, typer.Argument(help="Documents: JSONL (.gz too) or Parquet.")],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder of the index.")],
    task: TaskName = None,
    spec: SpecFile = None,
    step: Step = None,
    id_field: Annotated[str, typer.Option(help="Field of a document's identifier.")] = "doc_id",
    text_field: Annotated[str, typer.Option(help="Field of a document's text.")] = "text",
    kind: Annotated[str, typer.Option(help="flat: exact; hnsw: approximate, for millions of documents.")] = "flat",
    batch_size: BatchSize = 32,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
    trust_remote_code: TrustCode = False,
    runs_dir: RunsDir = DEFAULT_RUNS,
) -> None:
    """Embed the documents of a corpus and write a FAISS index.

    Example: `llama-scale search index RUN corpus.jsonl.gz --out index`.
    """
    if kind not in ("flat", "hnsw"):
        raise typer.BadParameter(f"{kind!r} is neither flat nor hnsw", param_hint="--kind")
    from dataclasses import asdict

    from llama_scale.cli.count_bar import count_bar  # lazy: keeps rich and torch out of --help
    from llama_scale.evaluation.answering import Sampling, answering
    from llama_scale.evaluation.search_index import build_index, read_corpus, search_task
    from llama_scale.evaluation.source import open_source

    if out.exists():
        raise LaunchError(f"{out} exists; choose another --out, or remove it")
    # Read to the end first, so that a fault in the last row is told before an hour of embedding.
    total = sum(1 for _ in read_corpus(corpus, id_field=id_field, text_field=text_field))
    with open_source(model, runs_dir=runs_dir, step=step, spec=spec, progress=say) as source:
        made = answering(source, sampling=Sampling(), batch_size=batch_size, trust_code=trust_remote_code)
        with count_bar("embedding documents", total=total) as bar:
            facts = build_index(
                out,
                read_corpus(corpus, id_field=id_field, text_field=text_field),
                task=search_task(made, task),
                made=made,
                model=str(Path(model).absolute()) if Path(model).exists() else model,
                kind=kind,  # type: ignore[arg-type]
                on_documents=bar.advance,
            )
    if as_json:
        emit_json(asdict(facts))
    else:
        say(f"{out}: {facts.documents} documents, {facts.dimensions} dimensions, {facts.kind}")


@app.command()
def query(
    folder: Annotated[Path, typer.Argument(metavar="INDEX", help="Folder that `search index` wrote.")],
    texts: Annotated[list[str] | None, typer.Argument(metavar="[QUERY]...", help="What is searched for.")] = None,
    *,
    queries_file: Annotated[Path | None, typer.Option(help="Text file, one query a line; - is standard input.")] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Documents a query.")] = 5,
    model: Annotated[str | None, typer.Option(help="Model, if it is not where it was when the index was made.")] = None,
    spec: SpecFile = None,
    step: Step = None,
    batch_size: BatchSize = 32,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
    trust_remote_code: TrustCode = False,
    runs_dir: RunsDir = DEFAULT_RUNS,
) -> None:
    """Find the documents of an index that are nearest to queries.

    Example: `llama-scale search query index "photo organizer for GNOME" --top-k 3`.
    """
    wanted = text_lines(
        texts or [],
        queries_file,
        option="--queries-file",
        missing="no query is given; write one behind the index, or use --queries-file FILE",
        error=LaunchError,
    )
    from llama_scale.evaluation.answering import Sampling, answering  # lazy: keeps torch out of --help
    from llama_scale.evaluation.search_index import SearchIndex, embed_queries, search_task
    from llama_scale.evaluation.source import open_source

    found = SearchIndex(folder)
    name = model or found.facts.model
    at = found.facts.step if step is None and model is None else step
    with open_source(name, runs_dir=runs_dir, step=at, spec=spec, progress=say) as source:
        found.check_model(source)
        made = answering(source, sampling=Sampling(), batch_size=batch_size, trust_code=trust_remote_code)
        vectors = embed_queries(search_task(made, found.facts.task), made, wanted)
    hits = found.search(vectors, top_k=top_k)
    if as_json:
        data = [{"query": q, "hits": [h.to_data() for h in row]} for q, row in zip(wanted, hits, strict=True)]
        emit_json(data)
    else:
        emit("\n\n".join(_listing(q, row) for q, row in zip(wanted, hits, strict=True)))


def _listing(query: str, hits: list[Hit]) -> str:
    return "\n".join([query, *(_line(hit) for hit in hits)])


def _line(hit: Hit) -> str:
    """Return a hit in 80 columns, or as many as its identifier takes: the text is cut, the identifier is not."""
    head = f"{hit.rank:3}  {hit.score:.3f}  {hit.id}"
    return f"{head}  {' '.join(hit.text.split())}"[: max(WIDTH, len(head))]
