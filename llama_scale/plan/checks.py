"""What a spec must fulfil for its plan to exist.

``load_spec`` has checked the same with line numbers; these checks guard specs that are built in Python.
"""

from __future__ import annotations

from collections.abc import Iterator

from llama_scale.errors import Problem
from llama_scale.spec import layout_rules, model_rules
from llama_scale.spec.run import RunSpec


def plan_problems(spec: RunSpec) -> list[Problem]:
    """Return what keeps a plan from being made: numbers that are not resolved, or rules on sizes and degrees."""
    unresolved = list(_unresolved(spec))
    if unresolved:
        return unresolved
    # What an engine cannot run still has a plan; `load_spec` refuses it.
    rules = [rule for rule in (*model_rules.RULES, *layout_rules.RULES) if "engine" not in rule.needs]
    found = [problem for rule in rules for problem in rule.check(spec)]
    return found + list(_batch_product(spec))


def _unresolved(spec: RunSpec) -> Iterator[Problem]:
    hint = "read the spec with `load_spec`, which resolves it"
    if spec.model.kind != "inline":
        yield Problem(path=("model",), message=f"model kind={spec.model.kind!r} is not resolved", hint=hint)
    batch = spec.batch
    for name, value in (("global", batch.global_), ("micro", batch.micro), ("accumulation", batch.accumulation)):
        if value is None:
            yield Problem(path=("batch", name), message="the batch is not resolved", hint=hint)
    if spec.train.epochs is not None:
        hint = "`launch` and `plan` count the rows; in Python: `runs.length.counted`, or `spec.length.any_length`"
        yield Problem(path=("train", "epochs"), message="the rows of an epoch are not counted yet", hint=hint)
    elif spec.train.steps is None:
        yield Problem(path=("train", "steps"), message="the number of steps is not resolved", hint=hint)


def _batch_product(spec: RunSpec) -> Iterator[Problem]:
    batch, dp_size = spec.batch, spec.parallel.data
    assert batch.micro is not None and batch.accumulation is not None
    product = batch.micro * batch.accumulation * dp_size
    if batch.global_ != product:
        yield Problem(
            path=("batch",),
            message=f"global={batch.global_} is not micro={batch.micro} x accumulation={batch.accumulation} x "
            f"data={dp_size} = {product}",
            hint="give two of the three numbers; the third follows",
            code="batch-product",
        )
