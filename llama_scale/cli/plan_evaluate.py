"""``llama-scale plan --evaluate``: predictions for published measurements, one row a row, in order."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from llama_scale.cli.output import emit, emit_json, say
from llama_scale.plan.evaluate import predict_row, read_rows


def run_evaluate(path: Path, *, as_json: bool) -> None:
    """Print predictions as CSV or JSON; what had to be assumed goes to stderr.

    Raises:
        SpecError: the file is no CSV file of measurements.
    """
    predictions = []
    for number, row in enumerate(read_rows(path), start=2):
        predictions.append(predict_row(row))
        if predictions[-1].notes:
            say(f"{path}:{number}: {'; '.join(predictions[-1].notes)}")
    columns = ("tokens_per_s_per_gpu", "peak_mem_gb", "fits")
    values = [(round(p.tokens_per_s_per_gpu, 3), round(p.peak_mem_gb, 3), int(p.fits)) for p in predictions]
    if as_json:
        emit_json([dict(zip(columns, row, strict=True)) for row in values])
        return
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(values)
    emit(buffer.getvalue())
