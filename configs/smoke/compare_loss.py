"""Compare a run's last losses with the unigram entropy of its corpus; exit status 1 unless it is clearly lower.

python configs/smoke/compare_loss.py RUN_FOLDER CORPUS_PREFIX
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

from llama_scale.cli.output import emit, say

LAST_STEPS = 10
CLEARLY_NATS = 0.3


def main(run: str, corpus: str) -> int:
    """Print both numbers and the verdict."""
    lines = Path(run, "metrics.jsonl").read_text().splitlines()
    steps = {row["step"]: row["loss"] for row in map(json.loads, lines) if "loss" in row}  # a repeated step's last
    last = sorted(steps)[-LAST_STEPS:]
    loss = statistics.fmean(steps[step] for step in last)
    entropy = json.loads(Path(corpus + ".json").read_text())["unigram_entropy_nats"]
    emit(f"final loss (mean of steps {last[0]} to {last[-1]})  {loss:.4f} nats a token")
    emit(f"unigram entropy of the corpus        {entropy:.4f} nats a token")
    if loss > entropy - CLEARLY_NATS:
        say(f"error: the loss is not clearly (by {CLEARLY_NATS} nats) below the unigram entropy")
        return 1
    emit(f"the model knows {entropy - loss:.2f} nats a token more than token frequencies: good")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
