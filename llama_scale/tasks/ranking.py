"""Scores of rankings by pytrec_eval, NIST's trec_eval: recall@k, MRR, nDCG@10."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llama_scale.errors import DataError
from llama_scale.tasks.text_scores import INSTALL


def rank_scores(
    right: Sequence[Sequence[str]], runs: Sequence[Mapping[str, float]], recall_at: Sequence[int]
) -> list[dict[str, float]]:
    """Return ``recall@k``, ``mrr`` and ``ndcg@10`` of each query, 0 to 1.

    Args:
        right: The documents that answer each query.
        runs: Document -> score of those that were found for it.
        recall_at: The k of recall@k.
    """
    try:
        import pytrec_eval
    except ImportError as error:
        raise DataError(f"scores of rankings need the package pytrec-eval-terrier: {INSTALL}") from error
    measures = {f"recall.{','.join(map(str, recall_at))}", "recip_rank", "ndcg_cut.10"}
    relevance = {str(query): dict.fromkeys(names, 1) for query, names in enumerate(right)}
    found = pytrec_eval.RelevanceEvaluator(relevance, measures).evaluate(
        {str(query): dict(run) for query, run in enumerate(runs)}
    )
    return [
        {
            **{f"recall@{k}": float(found[str(query)][f"recall_{k}"]) for k in recall_at},
            "mrr": float(found[str(query)]["recip_rank"]),
            "ndcg@10": float(found[str(query)]["ndcg_cut_10"]),
        }
        for query in range(len(right))
    ]
