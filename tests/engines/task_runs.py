"""Runs on tasks: small files of examples, and training on them as a worker does."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tests.engines.harness import join
from tests.engines.specs import Case
from tests.task_tokenizer import write_tokenizer

WORDS = (
    *("paper", "library", "kernel", "window", "driver", "image", "server"),
    *("client", "module", "shell", "editor", "thread", "buffer", "socket"),
)
VOCABULARY = 400
SEQ = 48


def write_files(folder: Path) -> Path:
    """Write a tokenizer and files of three tasks into a folder, and return it."""
    write_tokenizer(folder / "tokenizer", vocab_size=VOCABULARY)
    dice = random.Random(5)

    def words(count: int) -> str:
        return " ".join(dice.choices(WORDS, k=count))

    rows: dict[str, list[dict[str, Any]]] = {"sum": [], "qa": [], "search": []}
    for number in range(40):
        text = words(dice.randint(3, 12))
        split = "train" if number < 30 else "valid"
        rows["sum"].append({"split": split, "document": text, "summary": " ".join(text.split()[:2])})
        context = words(14)
        answer = " ".join(context.split()[4:6])
        start = len(" ".join(context.split()[:4])) + 1
        rows["qa"].append(
            {"split": split, "question": "which", "context": context, "answer": answer, "answer_start": start}
        )
        rows["search"].append({"split": split, "query": words(2), "positive": words(3), "negatives": [words(3)]})
    for name, content in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return folder


def sections(folder: Path, *names: str) -> dict[str, Any]:
    """Return the sections of a spec that trains on some of the tasks sum, qa and search."""

    def data(name: str) -> dict[str, str]:
        return {"kind": "split_field", "path": str(folder / f"{name}.jsonl")}

    tasks = {
        "sum": {"kind": "summarization", "options": {"data": data("sum"), "template": "{document}:"}},
        "qa": {
            "kind": "qa_extractive",
            "options": {"data": data("qa"), "stride": 8, "max_question_tokens": 4},
        },
        "search": {
            "kind": "semantic_search",
            "options": {
                "data": data("search"),
                "max_query_tokens": 12,
                "max_document_tokens": 18,
                "negatives_field": "negatives",
                "hard_negatives": 1,
                "temperature": 0.2,
            },
        },
    }
    return {
        "tasks": tuple({"name": name, **tasks[name]} for name in names),
        "data": {"kind": "tasks", "seq_length": SEQ},
        "tokenizer": {"kind": "hf", "path": str(folder / "tokenizer")},
    }


def task_case(folder: Path, *names: str, slot: int = 2, **fields: Any) -> Case:
    """Return a case that trains on tasks, with ``slot`` rows a micro-batch slot over all replicas."""
    dp = fields.get("dp", 1)
    shape = {"vocab_size": VOCABULARY, "max_position_embeddings": 64, **fields.pop("shape", {})}
    more = {"global_batch": 12, "micro": slot // dp, "seq_length": SEQ, "shape": shape, **fields}
    return Case(**more, sections=sections(folder, *(names or ("sum", "qa", "search"))))


def train_tasks(case: Case, run_dir: Path, *, steps: int = 6) -> dict[str, Any]:
    """Train and return the curve, each step's task losses and counts, and each task's validation loss at the end."""
    from llama_scale.train.engine import make_engine
    from llama_scale.train.samples import make_task_samples
    from llama_scale.train.statistics import gather, statistics_names
    from llama_scale.train.validation import mean_loss

    spec, plan = case.spec(), case.plan()
    join(plan, device=case.device)
    samples = make_task_samples(spec, split="train", run_dir=run_dir)
    held_out = make_task_samples(spec, split="validation", run_dir=run_dir)
    engine = make_engine(spec, plan)
    rank = engine.coordinates.dp_rank
    curve, losses, counts = [], [], []

    def batch(of: Any, first: int) -> Any:
        return of.global_batch(first, batch=plan.batch, dp_rank=rank, dp_size=case.dp)

    for step in range(steps):
        result = engine.train_step(batch(samples, step * case.global_batch), spec.optimizer.lr)
        assert not result.skipped
        curve.append((result.loss, result.grad_norm))
        found = gather(statistics_names(spec), engine.chunks)
        losses.append(dict(found.task_losses))
        counts.append((dict(found.task_tokens), found.responsibility_tokens))
        assert spec.mixture is not None or sum(found.task_tokens.values()) == result.tokens
    validation = {
        task.name: mean_loss(engine, held_out.alone(number), limit=9, plan=plan, dp_rank=rank)
        for number, task in enumerate(held_out.tasks)
    }
    return {"curve": curve, "losses": losses, "counts": counts, "validation": validation}
