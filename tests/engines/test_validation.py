"""Validation losses, training losses and gradients are token-weighted: transformers says what they are.

Rows differ in length and, for the weights are large, in loss: a mean of means is another number than the mean.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM

from llama_scale.convert.import_hf import import_hf
from llama_scale.convert.shards import Layout
from llama_scale.extensions.task import Feature
from llama_scale.train.data import Samples
from llama_scale.train.run_tasks import make_tasks
from tests.engines.harness import run_ranks
from tests.engines.specs import SHAPE, Case
from tests.engines.task_runs import VOCABULARY, WORDS, sections
from tests.engines.training import start_in_turn
from tests.task_tokenizer import write_tokenizer
from tests.unit.convert.tiny import Tiny
from tests.unit.train.token_files import write_token_file

SEQ, TEMPERATURE = 48, 0.2
TRAIN, VALIDATION = 12, 13
LOSS, NORM = 1e-5, 5e-5
WEIGHTS = {"sum": 3.0, "qa": 1.0, "search": 0.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model of large weights, a tokenizer, and files of tasks and tokens."""
    folder = tmp_path_factory.mktemp("validation")
    config = {
        "hidden_size": SHAPE["hidden_size"],
        "intermediate_size": SHAPE["ffn_hidden_size"],
        "num_hidden_layers": SHAPE["num_layers"],
        "num_attention_heads": SHAPE["num_heads"],
        "num_key_value_heads": SHAPE["num_kv_heads"],
        "head_dim": SHAPE["head_dim"],
        "vocab_size": VOCABULARY,
    }
    Tiny(config=config).write(folder / "hf")
    import_hf(folder / "hf", folder / "checkpoint", layout=Layout())
    write_tokenizer(folder / "tokenizer", vocab_size=VOCABULARY)
    dice = random.Random(5)

    def words(count: int) -> str:
        return " ".join(dice.choices(WORDS, k=count))

    rows: dict[str, list[dict[str, Any]]] = {"sum": [], "qa": [], "search": []}
    for number in range(TRAIN + VALIDATION):
        split = "train" if number < TRAIN else "valid"
        rows["sum"].append({"split": split, "document": words(2), "summary": words(dice.choice((1, 2, 7)))})
        context = words(dice.choice((3, 14)))
        rows["qa"].append(
            {"split": split, "question": "which", "context": context, "answer": context.split()[0], "answer_start": 0}
        )
        rows["search"].append({"split": split, "query": words(2), "positive": words(3), "negatives": [words(3)]})
    rows["search"][-1]["positive"] = rows["search"][-2]["positive"]  # no negative of the row before
    for name, content in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    numbers = np.random.default_rng(3)
    documents = [numbers.integers(0, VOCABULARY, n) for n in (*numbers.integers(1, 40, 30), 300)]
    write_token_file(folder / "tokens", documents, code=4)
    return folder


def tasks_case(folder: Path, *names: str, batches: int = 20, packing: bool = False, **fields: Any) -> Case:
    found = sections(folder, *(names or WEIGHTS))
    found["tasks"] = tuple({**task, "weight": WEIGHTS[task["name"]]} for task in found["tasks"])
    found["data"] = {**found["data"], "packing": packing}
    return _case(folder, found, batches=batches, seq_length=SEQ, **fields)


def indexed_case(folder: Path, *, isolate: bool, batches: int = 99, packing: bool = False, **fields: Any) -> Case:
    split = {"train": 0.2, "validation": 0.8, "test": 0}
    blend = tuple({"path": str(folder / "tokens"), "weight": weight} for weight in (3.0, 1.0))
    data = {"kind": "indexed", "blend": blend, "split": split, "seq_length": 16, "isolate_documents": isolate}
    return _case(folder, {"data": data}, batches=batches, **fields)


def _case(folder: Path, found: dict[str, Any], *, batches: int, **fields: Any) -> Case:
    shape = {"vocab_size": VOCABULARY, "init_from": str(folder / "checkpoint")}
    found["validation"] = {"every_steps": 1, "batches": batches}
    return Case(**{"global_batch": 4, **fields}, shape=shape, sections=found)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What one rank reported: validation, or the first step on the training split."""

    loss: float = 0.0
    tasks: dict[str, float] = field(default_factory=dict)
    step: tuple[float, float, int] | None = None
    of_step: dict[str, tuple[float, float]] = field(default_factory=dict)
    head: dict[str, torch.Tensor] = field(compare=False, default_factory=dict)


def measure(cases: Sequence[Case], folder: Path) -> list[Found]:
    """Start each case from the imported weights: one that trains on one task makes a step, others are validated."""
    from llama_scale.train.checkpointing import Checkpointer

    results = []
    for number, (case, engine) in enumerate(start_in_turn(cases)):
        run = folder / f"run-{number}"
        checkpointer = Checkpointer(run / "checkpoints", spec=case.spec(), plan=case.plan())
        assert checkpointer.warm_start(engine)
        results.append((_step if len(case.spec().tasks) == 1 else _validate)(case, engine, run))
        checkpointer.close()
    return results


def _validate(case: Case, engine: Any, run: Path) -> Found:
    from llama_scale.train.validation import make_validation

    validate = make_validation(case.spec(), case.plan(), engine, dp_rank=engine.coordinates.dp_rank, run_dir=run)
    assert validate is not None
    found = validate()
    head = {p.name: p.tensor.detach().clone() for p in engine.model_pieces() if "qa" in p.name}
    return Found(loss=found.loss, tasks=dict(found.task_losses), head=head if case.world_size == 1 else {})


def _step(case: Case, engine: Any, run: Path) -> Found:
    from llama_scale.train.samples import make_samples
    from llama_scale.train.statistics import gather, statistics_names

    batch = make_samples(case.spec(), split="train", run_dir=run).global_batch(
        0, batch=case.plan().batch, dp_rank=engine.coordinates.dp_rank, dp_size=case.dp
    )
    result = engine.train_step(batch, 1e-4)
    found = gather(statistics_names(case.spec()), engine.chunks)
    return Found(
        step=(result.loss, result.grad_norm, result.tokens),
        of_step={name: (loss, found.task_tokens[name]) for name, loss in found.task_losses.items()},
    )


# --- what transformers and formulas say -------------------------------------------------------------------------------


def judge(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder / "hf").double().eval()


def features(case: Case, name: str, split: str) -> list[Feature]:
    """Return a task's token sequences in the order of its file: what is averaged, not how."""
    [task] = [task.task for task in make_tasks(case.spec()) if task.name == name]
    return [feature for example in task.examples(split) for feature in task.encode(example)]  # type: ignore[arg-type]


def language_loss(model: LlamaForCausalLM, sequences: Sequence[Feature]) -> tuple[torch.Tensor, int]:
    """Return the loss that transformers has for sequences, summed, and the tokens that count."""
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for one in sequences:
        labels = torch.where(torch.from_numpy(one.weights > 0), torch.from_numpy(one.tokens), -100)
        counted = int((labels != -100).sum())
        found = model(input_ids=torch.from_numpy(one.tokens)[None], labels=labels[None]).loss
        total, tokens = total + found * counted, tokens + counted
    return total, tokens


def hidden_states(model: LlamaForCausalLM, tokens: np.ndarray) -> torch.Tensor:
    return model.model(input_ids=torch.from_numpy(tokens)[None]).last_hidden_state[0]


def span_loss(model: LlamaForCausalLM, windows: Sequence[Feature], head: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the mean over windows of the cross-entropies of start and end, as for SQuAD."""
    [weight], [bias] = ([p.double() for name, p in head.items() if name.endswith(end)] for end in ("weight", "bias"))
    losses = []
    for one in windows:
        first, count = one.extra["context"]
        scores = F.linear(hidden_states(model, one.tokens), weight, bias)[first : first + count + 1]
        losses.append(F.cross_entropy(scores.T, torch.from_numpy(one.extra["span"]) - int(first)))
    return torch.stack(losses).mean()


def search_loss(model: LlamaForCausalLM, rows: Sequence[Feature]) -> torch.Tensor:
    """Return the mean over queries of InfoNCE with the documents of groups of eight rows in the file's order."""
    losses = []
    for start in range(0, len(rows), 8):
        group = rows[start : start + 8]
        texts = [[one.tokens[one.segments == n] for n in range(3)] for one in group]  # query, positive, negative
        query, *documents = (
            F.normalize(torch.stack([hidden_states(model, row[n]).mean(0) for row in texts]), dim=-1) for n in range(3)
        )
        logits = query @ torch.stack(documents, 1).flatten(0, 1).T / TEMPERATURE
        for i, row in enumerate(texts):
            for j, other in enumerate(texts):
                if i != j and np.array_equal(row[1], other[1]):  # also a right answer of query i
                    logits[i, 2 * j] = -torch.inf
        losses.append(F.cross_entropy(logits, torch.arange(0, 2 * len(group), 2), reduction="none"))
    return torch.cat(losses).mean()


@torch.no_grad()
def expected_tokens(folder: Path, case: Case) -> float:
    """Return the loss over every window that the validation split has."""
    spec = case.spec()
    assert spec.data.kind == "indexed"
    samples = Samples(spec.data, split="validation", seed=spec.seed, vocab_size=VOCABULARY)
    sequences = []
    for stream in samples._streams:
        for number in range(stream.windows):
            tokens, documents = stream.sample(number)
            places = documents if spec.data.isolate_documents else np.zeros_like(documents)
            pieces = [tokens[places == n] for n in np.unique(places)]
            sequences += [
                Feature(tokens=one, weights=np.r_[0, np.ones(len(one) - 1)]) for one in pieces if len(one) > 1
            ]
    total, tokens = language_loss(judge(folder), sequences)
    return float(total) / tokens


@torch.no_grad()
def expected_tasks(folder: Path, case: Case, head: dict[str, torch.Tensor]) -> dict[str, float]:
    model = judge(folder)
    total, tokens = language_loss(model, features(case, "sum", "validation"))
    return {
        "sum": float(total) / tokens,
        "qa": float(span_loss(model, features(case, "qa", "validation"), head)),
        "search": float(search_loss(model, features(case, "search", "validation"))),
    }


def expected_step(folder: Path, case: Case) -> tuple[float, float, int]:
    """Return loss, gradient norm and tokens of a batch that holds all training rows."""
    model = judge(folder)
    total, tokens = language_loss(model, features(case, "sum", "train"))
    (total / tokens).backward()
    squares = [p.grad.square().sum() for p in model.parameters() if p.grad is not None]
    return float(total.detach()) / tokens, float(torch.stack(squares).sum().sqrt()), tokens


def zero(stage: int) -> dict[str, Any]:
    return {"kind": "deepspeed", "zero": stage, "persistence_elements": 0} if stage == 3 else {"kind": "deepspeed"}


LAYOUTS: dict[str, list[dict[str, Any]]] = {
    "one": [
        {"engine": {"kind": "ddp"}, "global_batch": 2, "micro": 1},
        {"engine": {"kind": "ddp"}, "global_batch": 12, "micro": 12},
        {"global_batch": 6, "micro": 3, "packing": True},
    ],
    "two": [
        {"dp": 2, "global_batch": 6, "micro": 3, "engine": {"kind": "ddp"}},
        {"dp": 2, "global_batch": 20, "micro": 5, "distributed_optimizer": True},
        {"dp": 2, "global_batch": 8, "micro": 2, "engine": zero(3)},
        {"tp": 2, "global_batch": 4, "micro": 2, "sequence": True, "packing": True},
    ],
    "four": [
        {"tp": 2, "pp": 2, "global_batch": 4, "micro": 1},
        {"pp": 2, "vp": 2, "dp": 2, "overlap_p2p": True, "global_batch": 12, "micro": 3},
        {"pp": 2, "dp": 2, "global_batch": 24, "micro": 3, "engine": zero(1)},
    ],
}
"""Layouts by number of processes; none of the batches divides the rows."""


STEPS: dict[str, list[dict[str, Any]]] = {
    "one": [{"micro": 4}],
    "two": [
        {"dp": 2, "engine": {"kind": "ddp"}},
        {"dp": 2, "distributed_optimizer": True},
        {"dp": 2, "engine": zero(3)},
    ],
    "four": [{"tp": 2, "pp": 2}, {"pp": 2, "dp": 2, "engine": zero(1)}],
}


@pytest.fixture(scope="module")
def head(folder: Path) -> dict[str, torch.Tensor]:
    [[found]] = run_ranks(1, measure, [tasks_case(folder)], folder / "head")
    return found.head


@pytest.mark.parametrize("layouts", LAYOUTS)
def test_losses_and_gradients_weigh_every_token_alike(
    folder: Path, head: dict[str, torch.Tensor], layouts: str
) -> None:
    on_tasks = [tasks_case(folder, **layout) for layout in LAYOUTS[layouts]]
    on_tokens = [indexed_case(folder, isolate=n == 1, **layout) for n, layout in enumerate(LAYOUTS[layouts][:2])]
    steps = [tasks_case(folder, "sum", global_batch=TRAIN, **layout) for layout in STEPS[layouts]]
    cases = [*on_tasks, *on_tokens, *steps]

    first, *others = run_ranks(cases[0].world_size, measure, cases, folder / layouts)

    assert all(other == first for other in others), "ranks report different numbers"
    found = iter(first)
    expected = expected_tasks(folder, on_tasks[0], head)
    total = sum(WEIGHTS[name] * loss for name, loss in expected.items()) / sum(WEIGHTS.values())
    for case, one in zip(on_tasks, found, strict=False):
        assert one.tasks == pytest.approx(expected, rel=LOSS), case
        assert one.loss == pytest.approx(total, rel=LOSS), case
    for case, one in zip(on_tokens, found, strict=False):
        assert one.loss == pytest.approx(expected_tokens(folder, case), rel=LOSS), case
    loss, norm, tokens = expected_step(folder, steps[0])
    for case, one in zip(steps, found, strict=False):
        assert one.step == (pytest.approx(loss, rel=LOSS), pytest.approx(norm, rel=NORM), tokens), case
        assert one.of_step == {"sum": (pytest.approx(loss, rel=LOSS), tokens)}, case
