"""Measure the parity of every engine and layout: the table in docs/engines.md.

    python benchmarks/parity_table.py --write    # all cells of the parity tests, some minutes, into the page
    python benchmarks/parity_table.py --only ddp

Each cell trains ten steps from the same initial weights on the same samples as one process of the Megatron engine and
keeps the largest relative difference of loss and of gradient norm. The cells are those of the parity tests.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the cells, and the ranks they run on, are the tests'
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

from tests.engines import test_parity as megatron  # noqa: E402
from tests.engines import test_parity_ddp as ddp  # noqa: E402
from tests.engines import test_parity_deepspeed as deepspeed  # noqa: E402
from tests.engines.harness import run_ranks  # noqa: E402
from tests.engines.specs import Case  # noqa: E402
from tests.engines.training import curve  # noqa: E402

PAGE = ROOT / "docs" / "engines.md"
BEGIN, END = "<!-- parity table: python benchmarks/parity_table.py --write -->\n", "<!-- end of the parity table -->\n"
STEPS = 10


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One line of the table."""

    engine: str
    name: str
    case: Case


def cells() -> Iterator[Cell]:
    """Yield the cells of the parity tests, engine by engine."""
    for case in megatron.GRID:
        for distributed in (False, True):
            name = "plain" if not distributed else "distributed optimizer"
            yield Cell(engine="megatron", name=name, case=replace(case, distributed_optimizer=distributed))
    for name, case in megatron.OPTIONS.items():
        yield Cell(engine="megatron", name=name, case=case)
    for name, case in ddp.CASES.items():
        yield Cell(engine="ddp", name=name, case=case)
    for name, case in deepspeed.CASES.items():
        yield Cell(engine="deepspeed", name=name, case=case)
    for name, case in deepspeed.BF16.items():
        yield Cell(engine="deepspeed", name=name, case=replace(case, compute="bf16"))
    yield Cell(engine="ddp", name="dp2", case=Case(dp=2, compute="bf16", engine=ddp.DDP))
    yield Cell(engine="megatron", name="tp2-pp2", case=Case(tp=2, pp=2, compute="bf16"))


def measure(cell: Cell) -> tuple[float, float]:
    """Return the largest relative difference of loss and of gradient norm."""
    expected = megatron.reference(cell.case)
    found = run_ranks(cell.case.world_size, curve, cell.case, steps=STEPS)[0]
    pairs = list(zip(found, expected, strict=True))
    return max(abs(a / b - 1) for (a, _), (b, _) in pairs), max(abs(n / m - 1) for (_, n), (_, m) in pairs)


def row(cell: Cell, loss: float, norm: float) -> str:
    """Return a line of the table."""
    case = cell.case
    ranks = f"{case.tp} x {case.pp} x {case.dp}"
    return f"| {cell.engine} | {cell.name} | {ranks} | {case.compute} | {loss:.1e} | {norm:.1e} |"


def write(rows: list[str]) -> None:
    """Put the rows between the page's two markers."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not rest or END not in text:
        raise SystemExit(f"{PAGE} has no lines {BEGIN.strip()} and {END.strip()}")
    PAGE.write_text(before + BEGIN + "\n".join(rows) + "\n" + END + after, encoding="utf-8")


def main() -> None:
    """Measure all cells and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("megatron", "ddp", "deepspeed"), help="measure one engine")
    parser.add_argument("--write", action="store_true", help="write the table into docs/engines.md")
    options = parser.parse_args()
    if options.only and options.write:
        parser.error("--only and --write exclude each other: the page holds all engines")
    rows = [
        "| engine | cell | tp x pp x dp | compute | loss | gradient norm |",
        "|---|---|---|---|---|---|",
    ]
    for cell in cells():
        if options.only in (None, cell.engine):
            rows.append(row(cell, *measure(cell)))
    if options.write:
        write(rows)
    else:
        print("\n".join(rows))


if __name__ == "__main__":
    main()
