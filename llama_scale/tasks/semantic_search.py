"""Task ``semantic_search``: embeddings of queries and documents, trained by InfoNCE; recall@k, MRR, nDCG@10."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llama_scale.data.examples import check_example, read_examples
from llama_scale.errors import DataError
from llama_scale.extensions.api import ExtraParameter, TaskDescriptor
from llama_scale.extensions.examples import Column, Example, FileTaskOptions
from llama_scale.spec.base import NonNegativeInt, PathStr, PositiveFloat, PositiveInt
from llama_scale.spec.model import ModelShape
from llama_scale.tasks.prompted import FieldName
from llama_scale.tasks.samples import QUERIES


class SemanticSearchOptions(FileTaskOptions):
    """Options of ``kind: semantic_search``."""

    refuses_unread: ClassVar[bool] = True

    query_field: FieldName = Field("query", description="Field with the query.")
    positive_field: FieldName = Field(
        "positive", description="Field with the document that answers it, or a list; with corpus: its identifier(s)."
    )
    negatives_field: FieldName | None = Field(
        None, description="Field with documents that do not answer it (hard negatives); with corpus: their identifiers."
    )
    corpus: PathStr | None = Field(
        None, description="JSONL or Parquet file with the documents; without it the examples hold the texts."
    )
    id_field: FieldName = Field("doc_id", description="Field of the corpus with a document's identifier.")
    text_field: FieldName = Field("text", description="Field of the corpus with a document's text.")
    hard_negatives: NonNegativeInt = Field(0, description="Hard negatives of an example that are used: its first ones.")
    pooling: Literal["mean", "last"] = Field(
        "mean", description="Embedding of a text: the mean of its tokens' hidden states, or the last token's."
    )
    temperature: PositiveFloat = Field(0.05, description="Divides the cosine similarities in the loss.")
    matryoshka: tuple[PositiveInt, ...] = Field(
        (), description="Leading dimensions at which embeddings are trained and scored beside the full ones."
    )
    query_prefix: str = Field("", description="Text in front of queries.")
    document_prefix: str = Field("", description="Text in front of documents.")
    max_query_tokens: PositiveInt = Field(64, description="Longer queries are cut at their end.")
    max_document_tokens: PositiveInt = Field(192, description="Longer documents are cut at their end.")
    distractors: NonNegativeInt | None = Field(
        None, description="Documents of the corpus beside the right ones that evaluation ranks. Default: all."
    )
    recall_at: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = Field(
        (1, 10, 100), description="The k of recall@k."
    )

    def columns(self) -> tuple[Column, ...]:
        """See ``FileTaskOptions.columns``."""
        query = Column(name=self.query_field, option="query_field")
        positive = Column(name=self.positive_field, form="texts", option="positive_field")
        if self.negatives_field is None:
            return (query, positive)
        negatives = Column(
            name=self.negatives_field, form="texts", required=False, blank=True, option="negatives_field"
        )
        return (query, positive, negatives)

    def check(self, example: Example) -> None:
        """See ``FileTaskOptions.check``: identifiers must be in the corpus."""
        super().check(example)
        self.positives(example)
        self.negatives(example)

    def positives(self, example: Example) -> list[tuple[str, str]]:
        """Return identifier and text of the documents that answer an example.

        Raises:
            DataError: An identifier is not in the corpus.
        """
        return self._documents(example, self.positive_field)

    def negatives(self, example: Example) -> list[tuple[str, str]]:
        """Return identifier and text of the hard negatives that are used, in the order of the file.

        Raises:
            DataError: An identifier is not in the corpus.
        """
        if self.negatives_field is None or example.values.get(self.negatives_field) is None:
            return []
        return self._documents(example, self.negatives_field)[: self.hard_negatives]

    def documents(self) -> Mapping[str, str]:
        """Return the corpus: identifier -> text; empty without one."""
        return {} if self.corpus is None else read_corpus(self.corpus, self.id_field, self.text_field)

    def _documents(self, example: Example, field: str) -> list[tuple[str, str]]:
        found = example[field]
        names = [found] if isinstance(found, str) else list(found)
        if self.corpus is None:
            return [(text, text) for text in names]  # a text names itself
        documents = self.documents()
        for name in names:
            if name not in documents:
                raise DataError(
                    f"{example.where}: {field!r} names the document {name!r}, which is not in the corpus {self.corpus} "
                    f"({len(documents)} documents); correct or remove the row"
                )
        return [(name, documents[name]) for name in names]

    def files(self) -> tuple[str, ...]:
        """See ``FileTaskOptions.files``."""
        return super().files() if self.corpus is None else (*super().files(), self.corpus)

    def faults(self, seq_length: int) -> Iterator[str]:
        """See ``FileTaskOptions.faults``."""
        documents = 1 + self.hard_negatives
        need = self.max_query_tokens + documents * self.max_document_tokens
        if need > seq_length:
            yield (
                f"max_query_tokens={self.max_query_tokens} and {documents} x max_document_tokens="
                f"{self.max_document_tokens} are {need} tokens, and a row holds data.seq_length={seq_length}: use "
                "shorter texts, fewer hard_negatives or a longer seq_length"
            )
        if self.hard_negatives and self.negatives_field is None:
            yield f"hard_negatives={self.hard_negatives}, but negatives_field names no field; set it, or use 0"


@functools.lru_cache(maxsize=4)
def read_corpus(path: str, id_field: str, text_field: str) -> Mapping[str, str]:
    """Read a corpus: identifier -> text.

    Raises:
        DataError: A row lacks a field, or two rows have one identifier.
    """
    columns = (Column(name=id_field, option="id_field"), Column(name=text_field, option="text_field"))
    documents: dict[str, str] = {}
    for example in read_examples(Path(path)):
        check_example(example, columns)
        name = example[id_field]
        if name in documents:
            raise DataError(f"{example.where}: the identifier {name!r} ({id_field}) is used already by an earlier row")
        documents[name] = example[text_field]
    if not documents:
        raise DataError(f"the corpus {path} holds no documents")
    return documents


def _parameters(options: SemanticSearchOptions, shape: ModelShape) -> tuple[ExtraParameter, ...]:
    """Return nothing: an embedding is a pooled hidden state; but its leading dimensions must exist."""
    for size in options.matryoshka:
        if size >= shape.hidden_size:
            raise ValueError(
                f"matryoshka={list(options.matryoshka)} names {size} dimensions, and embeddings have hidden_size="
                f"{shape.hidden_size}, which is trained in any case; use smaller ones"
            )
    return ()


DESCRIPTOR = TaskDescriptor(
    name="semantic_search",
    options=SemanticSearchOptions,
    implementation="llama_scale.tasks.semantic_search_module:SemanticSearch",
    summary="Embeddings for search by InfoNCE; recall@k, MRR, nDCG@10.",
    head="own",
    parameters=_parameters,
    files=SemanticSearchOptions.files,
    sample=QUERIES,
    unmixable="it embeds texts, and vectors are no distributions that could be mixed",
)
