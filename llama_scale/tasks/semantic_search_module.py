"""Implementation of the task ``semantic_search``: query, positive and hard negatives are isolated segments of a row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from llama_scale.extensions.examples import Example
from llama_scale.extensions.task import Feature, HeadContext, Model, Outcome, Task, TaskRows
from llama_scale.tasks.ranking import rank_scores
from llama_scale.tasks.semantic_search import SemanticSearchOptions

_BATCH = 64
"""Texts whose hidden states exist at once in evaluation."""

_MOST_POSITIVES = 8
"""Positives of a query that are known to the loss, so that they do not count as negatives."""


class SemanticSearch(Task):
    """Queries and the documents that answer them."""

    options: SemanticSearchOptions
    packable = False

    def encode(self, example: Example) -> Sequence[Feature]:
        """See ``Task.encode``: one feature a positive."""
        query, query_cut = self.query_ids(example[self.options.query_field])
        positives = [self.document_ids(text) for _, text in self.options.positives(example)[:_MOST_POSITIVES]]
        negatives = [self.document_ids(text) for _, text in self.options.negatives(example)]
        known = np.zeros(_MOST_POSITIVES, np.int64)
        known[: len(positives)] = [_identity(ids) for ids, _ in positives]
        features = []
        for positive in positives:
            documents = [positive, *negatives]
            identities = np.zeros(1 + self.options.hard_negatives, np.int64)  # 0: there is none
            identities[: len(documents)] = [_identity(ids) for ids, _ in documents]
            parts = [query, *(ids for ids, _ in documents)]
            tokens = np.array([token for part in parts for token in part])
            weights = np.zeros(len(tokens), np.float32)
            weights[0] = 1.0  # a query counts once
            features.append(
                Feature(
                    tokens=tokens,
                    weights=weights,
                    segments=np.repeat(np.arange(len(parts)), [len(part) for part in parts]),
                    extra={"documents": identities, "positives": known},
                    cut=query_cut + sum(cut for _, cut in documents),
                )
            )
        return features

    def query_ids(self, text: str) -> tuple[list[int], int]:
        """Return the ids of a query with its EOS, and how many tokens were cut off."""
        return self._ids(self.options.query_prefix + text.strip(), self.options.max_query_tokens)

    def document_ids(self, text: str) -> tuple[list[int], int]:
        """Return the ids of a document with its EOS, and how many tokens were cut off."""
        return self._ids(self.options.document_prefix + text.strip(), self.options.max_document_tokens)

    def loss(self, hidden: torch.Tensor, rows: TaskRows, head: HeadContext) -> torch.Tensor:
        """See ``Task.loss``: InfoNCE over the documents of all replicas' rows in this micro-batch slot.

        -log of the softmax, over candidate documents, of cosine(query, document) / temperature at the row's own
        positive (van den Oord et al., 2018). Documents that are a positive of the query as well are no candidates.
        With Matryoshka dimensions (Kusupati et al., 2022): the mean of the losses at each of them and the full size.
        """
        pooled = self._pooled(hidden.transpose(0, 1).float(), rows.documents)  # [R, 1 + D, H]
        identities = rows.extra["documents"]
        candidates = head.gather_replicas(pooled[:, 1:]).flatten(0, 1)
        names = head.gather_replicas(identities).flatten()
        own = (torch.arange(len(pooled), device=names.device) + head.own_offset) * identities.shape[1]
        excluded = (names.view(1, -1, 1) == rows.extra["positives"].unsqueeze(1)).any(2) | (names == 0)
        excluded[torch.arange(len(pooled), device=names.device), own] = False
        sizes = (*self.options.matryoshka, hidden.shape[-1])
        total = hidden.new_zeros((), dtype=torch.float32)
        for size in sizes:
            queries = F.normalize(pooled[:, 0, :size], dim=-1)
            logits = queries @ F.normalize(candidates[:, :size], dim=-1).t() / self.options.temperature
            log_probabilities = logits.masked_fill(excluded, -torch.inf).log_softmax(dim=1)
            picked = log_probabilities.gather(1, own.unsqueeze(1)).squeeze(1)
            total = total - (picked * rows.weights.sum(1)).sum() / len(sizes)
        return total

    def predict(self, model: Model, examples: Sequence[Example]) -> Iterator[Outcome]:
        """See ``Task.predict``: every query ranks the same documents."""
        right = [[name for name, _ in self.options.positives(example)] for example in examples]
        documents = self._candidates(examples)
        queries = self.embed(model, [self.query_ids(example[self.options.query_field])[0] for example in examples])
        found = self.embed(model, [self.document_ids(text)[0] for text in documents.values()])
        names = list(documents)
        depth = min(len(names), max(100, *self.options.recall_at, 10))
        scores: list[dict[str, float]] = [{} for _ in examples]
        rankings: list[list[str]] = []
        for size in (None, *self.options.matryoshka):
            similarity = F.normalize(queries[:, :size], dim=-1) @ F.normalize(found[:, :size], dim=-1).t()
            best, places = similarity.topk(depth, dim=1)
            runs = [
                {names[place]: value for place, value in zip(row, values, strict=True)}
                for row, values in zip(places.tolist(), best.tolist(), strict=True)
            ]
            suffix = "" if size is None else f"_dim{size}"
            for total, one in zip(scores, rank_scores(right, runs, self.options.recall_at), strict=True):
                total.update({name + suffix: value for name, value in one.items()})
            if size is None:
                rankings = [list(run)[:10] for run in runs]
        for of_one, ranking, names_of_one in zip(scores, rankings, right, strict=True):
            yield Outcome(prediction=ranking, reference=names_of_one, scores=of_one)

    def embed(self, model: Model, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return unit embeddings ``[n, H]`` (fp32, CPU) of token sequences from ``query_ids`` or ``document_ids``."""
        parts = []
        for at in range(0, len(sequences), _BATCH):
            for state in model.hidden_states(sequences[at : at + _BATCH]):
                parts.append(state.mean(0) if self.options.pooling == "mean" else state[-1])
        return F.normalize(torch.stack(parts).float(), dim=-1)

    def _pooled(self, hidden: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
        """Return ``[R, 2 + hard negatives, H]``, one vector a segment, from hidden states ``[R, S, H]``."""
        numbers = torch.arange(2 + self.options.hard_negatives, device=hidden.device)
        member = segments.unsqueeze(1) == numbers.view(1, -1, 1)  # [R, K, S]
        if self.options.pooling == "mean":
            weight = member.to(hidden.dtype)
            return weight @ hidden / weight.sum(2, keepdim=True).clamp_min(1.0)
        places = torch.arange(segments.shape[1], device=hidden.device)
        last = torch.where(member, places, 0).amax(2)
        return hidden.gather(1, last.unsqueeze(2).expand(-1, -1, hidden.shape[2]))

    def _candidates(self, examples: Sequence[Example]) -> Mapping[str, str]:
        """Return the documents that evaluation ranks: the right ones, then others in the order of a hash."""
        known = {name: text for example in examples for name, text in self.options.positives(example)}
        if self.options.corpus is None:
            known |= {name: text for example in examples for name, text in self.options.negatives(example)}
            return known
        documents = self.options.documents()
        others = sorted((name for name in documents if name not in known), key=_digest)
        chosen = others if self.options.distractors is None else others[: self.options.distractors]
        return known | {name: documents[name] for name in chosen}

    def _ids(self, text: str, limit: int) -> tuple[list[int], int]:
        start = self.context.tokenizer.start_ids
        ids = self.context.tokenizer.encode(text)
        kept = ids[: limit - 1 - len(start)]
        return [*start, *kept, self.context.tokenizer.eos_id], len(ids) - len(kept)


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


def _identity(ids: Sequence[int]) -> int:
    """Return a number other than 0 that equal token sequences share."""
    found = hashlib.blake2b(np.array(ids, np.int64).tobytes(), digest_size=8).digest()
    return int.from_bytes(found, "little", signed=True) or 1
