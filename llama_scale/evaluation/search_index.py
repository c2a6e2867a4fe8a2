"""A FAISS index of a corpus, embedded by a model that was trained for semantic search, and what it finds.

An index is a folder: ``vectors.faiss``, ``documents.jsonl`` (identifier and text, in the order of the vectors) and
``index.json``, which is written last and says what made it. It appears under its name when it is whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llama_scale.data.examples import Column, Example, check_example, read_examples
from llama_scale.errors import DataError, LaunchError
from llama_scale.evaluation.answering import Answering
from llama_scale.evaluation.source import Source, fingerprint
from llama_scale.tasks.semantic_search_module import SemanticSearch

FORMAT = 1
_MANIFEST = "index.json"
_VECTORS = "vectors.faiss"
_DOCUMENTS = "documents.jsonl"
_CHUNK = 256
"""Documents embedded between two steps of the progress bar."""
_HNSW_LINKS = 32
"""Links of a document in an HNSW graph (faiss's usual choice)."""

Kind = Literal["flat", "hnsw"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What an index says of itself.

    Args:
        format: Version of the folder's form.
        kind: ``flat`` (exact) or ``hnsw`` (approximate, for millions of documents).
        model: The model as it was named, absolute if it is a path.
        step: Checkpoint of a run; None otherwise.
        fingerprint: Of the model's weights; queries must be embedded by the same.
        task: Name of the task in the spec.
        answers: Who embeds: an adapter or the whole model.
        dimensions: Size of a vector.
        documents: Number of documents.
    """

    format: int
    kind: Kind
    model: str
    step: int | None
    fingerprint: str
    task: str
    answers: str
    dimensions: int
    documents: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One document that was found.

    Args:
        rank: 1 for the best.
        score: Cosine similarity.
        id: Its identifier.
        text: Its text.
    """

    rank: int
    score: float
    id: str
    text: str

    def to_data(self) -> dict[str, Any]:
        """Return JSON-able data."""
        return asdict(self)


def search_task(made: Answering, name: str | None) -> SemanticSearch:
    """Return the task that embeds.

    Args:
        made: The opened model.
        name: Its name in the spec; None: the only one of this kind.

    Raises:
        LaunchError: There is none, several could be meant, or the named one is of another kind.
    """
    tasks = [made.task(task) for task in made.task_names()]
    fitting = [task for task in tasks if isinstance(task, SemanticSearch) and name in (None, task.context.name)]
    if len(fitting) == 1:
        return fitting[0]
    known = ", ".join(task.context.name for task in tasks if isinstance(task, SemanticSearch)) or "none"
    said = "the spec has" if name is None else f"--task {name!r}: the spec has"
    raise LaunchError(f"{said} these tasks of kind semantic_search: {known}; name one with --task")


def read_corpus(path: Path, *, id_field: str, text_field: str) -> Iterator[tuple[str, str]]:
    """Yield identifier and text of each document.

    Raises:
        DataError: A row lacks a field, or an identifier comes twice; file and line are named.
    """
    columns = (Column(name=text_field, option="--text-field"), Column(name=id_field, form="any", option="--id-field"))
    seen: set[str] = set()
    for example in read_examples(path):
        check_example(example, columns)
        name = _identifier(example, id_field)
        if name in seen:
            raise DataError(f"{example.where}: {id_field}={name!r} came before; identifiers must differ")
        seen.add(name)
        yield name, example[text_field]


def _identifier(example: Example, field: str) -> str:
    value = example[field]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(f"{example.where}: {field}={value!r} is no identifier; it has to be a text or a whole number")
    return str(value)


def build_index(
    folder: Path,
    corpus: Iterator[tuple[str, str]],
    *,
    task: SemanticSearch,
    made: Answering,
    model: str,
    kind: Kind,
    on_documents: Callable[[int], None] = lambda _count: None,
) -> Facts:
    """Embed a corpus and write the index.

    Args:
        folder: New folder.
        corpus: From ``read_corpus``.
        task: From ``search_task``.
        made: The opened model; the task's adapter is chosen.
        model: How the user named it.
        kind: Kind of FAISS index.
        on_documents: Told how many documents more are done.

    Raises:
        DataError: The corpus is empty or a row is wrong.
        LaunchError: The folder exists or cannot be written.
    """
    if folder.exists():
        raise LaunchError(f"{folder} exists; choose another --out, or remove it")
    scratch = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    answers = made.choose("own", task=task.context.name)
    try:
        scratch.mkdir(parents=True)
        vectors, count = _embed_all(scratch, corpus, task=task, made=made, kind=kind, on_documents=on_documents)
        facts = Facts(
            format=FORMAT,
            kind=kind,
            model=model,
            step=None if made.source.manifest is None or made.source.run is None else made.source.manifest.step,
            fingerprint=fingerprint(made.source),
            task=task.context.name,
            answers=answers,
            dimensions=vectors.d,
            documents=count,
        )
        _faiss().write_index(vectors, str(scratch / _VECTORS))
        (scratch / _MANIFEST).write_text(json.dumps(asdict(facts), indent=2) + "\n", encoding="utf-8")
        scratch.rename(folder)
    except OSError as error:
        raise LaunchError(f"{folder} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return facts


def _embed_all(
    folder: Path,
    corpus: Iterator[tuple[str, str]],
    *,
    task: SemanticSearch,
    made: Answering,
    kind: Kind,
    on_documents: Callable[[int], None],
) -> tuple[Any, int]:
    vectors, count = None, 0
    with (folder / _DOCUMENTS).open("w", encoding="utf-8") as file:
        while chunk := list(islice(corpus, _CHUNK)):
            found = task.embed(made.model, [task.document_ids(text)[0] for _, text in chunk]).numpy()
            vectors = _new_index(kind, found.shape[1]) if vectors is None else vectors
            vectors.add(np.ascontiguousarray(found))
            file.writelines(json.dumps({"id": name, "text": text}, ensure_ascii=False) + "\n" for name, text in chunk)
            count += len(chunk)
            on_documents(len(chunk))
    if vectors is None:
        raise DataError("the corpus has no documents; there is nothing to index")
    return vectors, count


def _new_index(kind: Kind, dimensions: int) -> Any:
    faiss = _faiss()
    if kind == "hnsw":
        return faiss.IndexHNSWFlat(dimensions, _HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    return faiss.IndexFlatIP(dimensions)


class SearchIndex:
    """A finished index.

    Args:
        folder: Its folder.

    Raises:
        LaunchError: It is no index, not whole, or of a newer form.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self.facts = Facts(**json.loads((folder / _MANIFEST).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise LaunchError(
                f"{folder} is no search index ({_MANIFEST} is missing or damaged); `llama-scale search index` makes one"
            ) from error
        if self.facts.format != FORMAT:
            raise LaunchError(f"{folder} has form {self.facts.format}, this version reads {FORMAT}; make it anew")
        try:
            self._vectors = _faiss().read_index(str(folder / _VECTORS))
            with (folder / _DOCUMENTS).open(encoding="utf-8") as file:
                self._documents = [json.loads(line) for line in file]
        except (OSError, ValueError, RuntimeError) as error:  # faiss raises RuntimeError
            raise LaunchError(f"{folder} is damaged; make it anew with `llama-scale search index`") from error
        if not self._vectors.ntotal == len(self._documents) == self.facts.documents:
            raise LaunchError(
                f"{folder} is damaged: {self._vectors.ntotal} vectors and {len(self._documents)} documents of "
                f"{self.facts.documents}; make it anew"
            )

    def check_model(self, source: Source) -> None:
        """Check that a model is the one that embedded the documents.

        Raises:
            LaunchError: It is another one, or was trained on.
        """
        if fingerprint(source) != self.facts.fingerprint:
            raise LaunchError(
                f"the documents were embedded by other weights (of {self.facts.model}, step {self.facts.step}); query "
                "with that model (--model, --step), or make the index anew"
            )

    def search(self, queries: np.ndarray, *, top_k: int) -> list[list[Hit]]:
        """Return the nearest documents of each query ``[n, dimensions]``, best first."""
        scores, places = self._vectors.search(np.ascontiguousarray(queries), min(top_k, self.facts.documents))
        return [
            [
                Hit(rank=rank, score=float(score), **self._documents[place])
                for rank, (score, place) in enumerate(zip(row, found, strict=True), 1)
                if place >= 0  # an approximate search may find fewer
            ]
            for row, found in zip(scores, places, strict=True)
        ]


def embed_queries(task: SemanticSearch, made: Answering, queries: Sequence[str]) -> np.ndarray:
    """Return unit embeddings ``[n, dimensions]`` of texts that are searched for.

    Raises:
        LaunchError: A query is blank.
    """
    for query in queries:
        if not query.strip():
            raise LaunchError("a query is blank; write at least one word")
    made.choose("own", task=task.context.name)
    embedded: np.ndarray = task.embed(made.model, [task.query_ids(query)[0] for query in queries]).numpy()
    return embedded


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise LaunchError("search needs FAISS: pip install 'llama-scale[search]'") from error
    return faiss
