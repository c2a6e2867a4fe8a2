"""Fit the planner's constants to published measurements, and tell how well they predict: also sources left out.

    python benchmarks/planner.py [MEASURED.csv [--fit] [--leave-one-out] [--folds N] [--iterations N]]

Without a flag the constants in use are scored. The fit is least squares on the logarithm of throughput with a robust
weight (rows 10% off count half as much a percent), by Levenberg-Marquardt on the logarithms of the constants.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import exp, log, sqrt
from pathlib import Path
from random import Random
from statistics import mean, median

from llama_scale.plan.constants import DEFAULT, Constants
from llama_scale.plan.evaluate import best_micro_batch, predict_row, read_rows
from llama_scale.plan.rows import read_row
from llama_scale.plan.run_memory import run_memory
from llama_scale.plan.step_time import step_time, tokens_per_second
from llama_scale.plan.workload import Workload

# fmt: off
FITTED = (
    "gemm_ampere", "gemm_hopper", "gemm_blackwell", "gemm_fp8", "tile_k", "misaligned", "attention", "memory", "link",
    "network", "hop_us", "collective_us", "kernel_us", "dispatch_us", "tp_hidden", "overlap", "straggler",
)
BOUNDS = {
    "gemm_ampere": (0.6, 1.0), "gemm_hopper": (0.6, 1.0), "gemm_blackwell": (0.6, 1.0), "gemm_fp8": (0.5, 1.1),
    "attention": (0.3, 0.95), "memory": (0.5, 0.95), "link": (0.4, 0.95), "network": (0.3, 0.95),
    "tp_hidden": (0.05, 0.95), "overlap": (0.1, 1.0), "misaligned": (1.0, 2.0), "kernel_us": (1.0, 2.0),
    "hop_us": (2.0, 20.0), "collective_us": (5.0, 40.0), "dispatch_us": (5.0, 25.0),
}
# fmt: on
"""Physical limits; a constant that runs into one is told apart in docs/planner.md."""

# fmt: off
FIRST_GUESS = dataclasses.replace(
    DEFAULT, gemm_ampere=0.85, gemm_hopper=0.85, gemm_blackwell=0.85, gemm_fp8=1.0, tile_k=64.0, misaligned=1.5,
    attention=0.5, memory=0.8, link=0.75, network=0.8, hop_us=14.0, collective_us=20.0, kernel_us=2.0, dispatch_us=15.0,
    tp_hidden=0.4, overlap=0.4, straggler=0.003,
)
# fmt: on
"""Where every fit starts, and what it is pulled to where rows tell nothing: data sheets and common measurements."""

_SCALE = 0.10
_PRIOR = 0.5
"""Standard deviation of a constant's logarithm about its first guess; keeps what no row tells from running away."""


@dataclasses.dataclass(frozen=True, slots=True)
class Timed:
    """One timed row: where it comes from, its workload and its tokens/s of one GPU."""

    source: str
    workload: Workload
    measured: float


def timed_rows(rows: Iterable[Mapping[str, str]]) -> list[Timed]:
    """Return the dense pretraining rows of quality A that were timed."""
    found = []
    for row in rows:
        measured = row.get("ref_tokens_per_s_per_gpu") or ""
        wanted = row.get("status") == "ok" and row.get("quality") == "A" and row.get("task") == "pretrain"
        if measured and wanted and not row.get("moe_n_experts"):
            workload = read_row(row)[0]
            if not row.get("micro_batch"):
                workload = best_micro_batch(workload)
            found.append(Timed(row["source"], workload, float(measured)))
    return found


def residuals(rows: Sequence[Timed], constants: Constants) -> list[float]:
    """Return log(predicted / measured) of each row."""
    return [
        log(tokens_per_second(row.workload, step_time(row.workload, constants=constants)) / row.measured)
        for row in rows
    ]


def fit(rows: Sequence[Timed], *, iterations: int) -> Constants:
    """Return the constants that minimise the robust squares of the residuals."""
    theta = _clip([log(getattr(FIRST_GUESS, name)) for name in FITTED])
    centre = [log(getattr(FIRST_GUESS, name)) for name in FITTED]
    damping, current = 1e-2, _loss(rows, theta, centre)
    for _ in range(iterations):
        base = residuals(rows, _constants(theta))
        weights = [1 / sqrt(1 + (r / _SCALE) ** 2) for r in base]
        columns = []
        for index in range(len(theta)):
            moved = list(theta)
            moved[index] += 0.02
            columns.append([(a - b) / 0.02 for a, b in zip(residuals(rows, _constants(moved)), base, strict=True)])
        normal = [[_dot(a, b, weights) for b in columns] for a in columns]
        right = [-_dot(a, base, weights) for a in columns]
        pull = (_SCALE / _PRIOR) ** 2
        for index in range(len(theta)):
            normal[index][index] += pull
            right[index] -= pull * (theta[index] - centre[index])
        for _ in range(6):
            damped = [[v * (1 + damping * (i == j)) for j, v in enumerate(line)] for i, line in enumerate(normal)]
            trial = _clip([t + max(-0.4, min(0.4, d)) for t, d in zip(theta, _solve(damped, right), strict=True)])
            loss = _loss(rows, trial, centre)
            if loss < current:
                theta, current, damping = trial, loss, damping / 3
                break
            damping *= 5
        else:
            break
    return _constants(theta)


def _loss(rows: Sequence[Timed], theta: Sequence[float], centre: Sequence[float]) -> float:
    robust = sum(2 * _SCALE**2 * (sqrt(1 + (r / _SCALE) ** 2) - 1) for r in residuals(rows, _constants(theta)))
    return robust + (_SCALE / _PRIOR) ** 2 * sum((t - c) ** 2 for t, c in zip(theta, centre, strict=True))


def _constants(theta: Sequence[float]) -> Constants:
    return dataclasses.replace(DEFAULT, **{name: exp(value) for name, value in zip(FITTED, theta, strict=True)})


def _clip(theta: Sequence[float]) -> list[float]:
    limits = [BOUNDS.get(name, (1e-4, 1e6)) for name in FITTED]
    return [max(log(low), min(log(high), value)) for value, (low, high) in zip(theta, limits, strict=True)]


def _dot(a: Sequence[float], b: Sequence[float], weights: Sequence[float]) -> float:
    return sum(w * x * y for w, x, y in zip(weights, a, b, strict=True))


def _solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Solve a small symmetric system by Gaussian elimination with pivots."""
    size = len(right)
    rows = [[*line, value] for line, value in zip(matrix, right, strict=True)]
    for column in range(size):
        pivot = max(range(column, size), key=lambda i: abs(rows[i][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for below in range(column + 1, size):
            factor = rows[below][column] / rows[column][column]
            rows[below] = [a - factor * b for a, b in zip(rows[below], rows[column], strict=True)]
    answer = [0.0] * size
    for index in reversed(range(size)):
        known = sum(rows[index][j] * answer[j] for j in range(index + 1, size))
        answer[index] = (rows[index][size] - known) / rows[index][index]
    return answer


def table(title: str, errors: Mapping[str, Sequence[float]]) -> str:
    """Return errors in percent by source as a Markdown table."""
    lines = [f"{title}\n", "| source | rows | median | mean | p90 | bias |", "|---|---|---|---|---|---|"]
    every = [error for values in errors.values() for error in values]
    for name, values in [*sorted(errors.items()), ("all", every)]:
        size = sorted(abs(value) * 100 for value in values)
        p90 = size[min(len(size) - 1, int(0.9 * len(size)))]
        figures = f"{median(size):.1f} | {mean(size):.1f} | {p90:.1f} | {median(values) * 100:+.1f}"
        lines.append(f"| {name} | {len(size)} | {figures} |")
    return "\n".join(lines) + "\n"


def by_source(rows: Sequence[Timed], constants: Constants) -> dict[str, list[float]]:
    """Return predicted over measured, less 1, by source."""
    errors = defaultdict(list)
    for row, residual in zip(rows, residuals(rows, constants), strict=True):
        errors[row.source].append(exp(residual) - 1)
    return errors


def leave_one_out(rows: Sequence[Timed], *, iterations: int) -> dict[str, list[float]]:
    """Return each source's errors under constants that were fitted without it."""
    errors = {}
    for source in sorted({row.source for row in rows}):
        without = [row for row in rows if row.source != source]
        found = fit(without, iterations=iterations)
        errors.update(by_source([row for row in rows if row.source == source], found))
        print(f"left out {source}", file=sys.stderr, flush=True)
    return errors


def leave_folds_out(rows: Sequence[Timed], *, folds: int, iterations: int) -> dict[str, list[float]]:
    """Return all errors, by source, where each of ``folds`` random parts is predicted by a fit to the others.

    So rows that were not seen, of sources that were, are predicted.
    """
    order = list(rows)
    Random(0).shuffle(order)
    errors: dict[str, list[float]] = defaultdict(list)
    for fold in range(folds):
        left_out = order[fold::folds]
        kept = [row for place, row in enumerate(order) if place % folds != fold]
        for source, found in by_source(left_out, fit(kept, iterations=iterations)).items():
            errors[source] += found
        print(f"left out part {fold + 1} of {folds}", file=sys.stderr, flush=True)
    return errors


def memory_errors(rows: Iterable[Mapping[str, str]]) -> dict[str, list[float]]:
    """Return predicted over measured peak memory, less 1, by source."""
    errors = defaultdict(list)
    for row in rows:
        if has_peak(row):
            errors[row["source"]].append(predict_row(row).peak_mem_gb / float(row["peak_mem_gb"]) - 1)
    return errors


def has_peak(row: Mapping[str, str]) -> bool:
    """Tell whether a row prints the peak memory of a dense run."""
    return row.get("status") == "ok" and bool(row.get("peak_mem_gb")) and not row.get("moe_n_experts")


MEMORY_GRID = [(0.25 * context, 0.02 * slack) for context in range(2, 16) for slack in range(13)]
"""Values of context_gb and fragmentation that are tried."""


MEMORY_GUESS = (2.4, 0.1)
"""CUDA context and libraries 1.3 to 1.6 GB (the sources' own figures) and communicators; the allocator's slack."""
MEMORY_WIDTH = (1.0, 0.05)


def leave_one_out_memory(rows: Sequence[Mapping[str, str]], *, pull: float = 0.01) -> dict[str, list[float]]:
    """Return each source's errors under the memory constants that suit the other sources best.

    Best is the least sum of the mean absolute error over rows with a peak, the share of wrong verdicts over rows
    that are known to fit or not, and ``pull`` for each squared width of distance from the first guess.
    """
    peaks: dict[str, list[list[float]]] = defaultdict(list)  # source -> row -> error for each pair of the grid
    wrong: dict[str, list[list[bool]]] = defaultdict(list)
    grid = [dataclasses.replace(DEFAULT, context_gb=context, fragmentation=slack) for context, slack in MEMORY_GRID]
    for row in rows:
        if row.get("moe_n_experts") or not row.get("micro_batch"):
            continue
        workload, _ = read_row(row)
        found = [run_memory(workload, constants=constants) for constants in grid]
        if has_peak(row):
            metric, peak = row.get("mem_metric") or "", float(row["peak_mem_gb"])
            peaks[row["source"]].append([memory.in_metric(metric) / peak - 1 for memory in found])
        if row.get("status") in ("ok", "oom"):
            wrong[row["source"]].append([memory.fits != (row["status"] == "ok") for memory in found])
    errors = {}
    for source in sorted(peaks):
        others = [errors_ for name, rows_ in peaks.items() if name != source for errors_ in rows_]
        verdicts = [wrong_ for name, rows_ in wrong.items() if name != source for wrong_ in rows_]
        losses = [
            mean(abs(row[index]) for row in others)
            + mean(row[index] for row in verdicts)
            + pull * sum(((a - b) / c) ** 2 for a, b, c in zip(pair, MEMORY_GUESS, MEMORY_WIDTH, strict=True))
            for index, pair in enumerate(MEMORY_GRID)
        ]
        best = losses.index(min(losses))
        print(f"without {source}: context_gb, fragmentation = {MEMORY_GRID[best]}", file=sys.stderr)
        errors[source] = [row[best] for row in peaks[source]]
    return errors


def main() -> None:
    """Score, fit and leave sources out, as asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", type=Path, nargs="?")
    parser.add_argument("--fit", action="store_true", help="fit the constants and print them")
    parser.add_argument("--leave-one-out", action="store_true", help="also fit without each source and predict it")
    parser.add_argument("--folds", type=int, help="also fit without each of so many random parts and predict it")
    parser.add_argument("--iterations", type=int, default=8)
    options = parser.parse_args()
    if options.measured is None:
        print("no file of measurements given: see docs/planner.md, rows of measurements")
        return
    raw = list(read_rows(options.measured))
    rows = timed_rows(raw)
    constants = DEFAULT
    if options.fit:
        constants = fit(rows, iterations=options.iterations)
        for name in FITTED:
            print(f"    {name}: float = {getattr(constants, name):.4g}")
    print(table("Throughput", by_source(rows, constants)))
    print(table("Memory", memory_errors(raw)))
    if options.leave_one_out:
        print(table("Memory, source left out", leave_one_out_memory(raw)))
        print(table("Throughput, source left out", leave_one_out(rows, iterations=options.iterations)))
    if options.folds:
        left_out = leave_folds_out(rows, folds=options.folds, iterations=options.iterations)
        print(table(f"Throughput, each of {options.folds} parts left out", left_out))


if __name__ == "__main__":
    main()
