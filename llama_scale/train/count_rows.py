"""Make the examples of a run's tasks into features before the run exists, to know how many rows there are.

``python -m llama_scale.train.count_rows SPEC --examples FOLDER [--known FOLDER]`` writes one JSON object to stdout:
``rows`` by task, or the ``error`` that kept them from being counted.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from llama_scale.errors import LlamaScaleError
from llama_scale.spec.load import load_spec
from llama_scale.spec.run import RunSpec
from llama_scale.train.run_tasks import RunTask, make_tasks
from llama_scale.train.task_data_prepare import features_folder, prepared_splits


def main(argv: Sequence[str] | None = None) -> int:
    """Count the training rows of a spec's tasks; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m llama_scale.train.count_rows", description=__doc__)
    parser.add_argument("spec", type=Path, help="a resolved spec")
    parser.add_argument("--examples", type=Path, required=True, help="folder that gets the features")
    parser.add_argument("--known", type=Path, help="folder of features that are made already")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("llama_scale").setLevel(logging.INFO)
    try:
        spec = load_spec(options.spec)
        tasks = [task for task in make_tasks(spec) if task.weight > 0]
        rows = {task.name: _count(spec, task, examples=options.examples, known=options.known) for task in tasks}
    except LlamaScaleError as error:
        json.dump({"error": str(error)}, sys.stdout)
        return error.exit_code
    json.dump({"rows": rows}, sys.stdout)
    return 0


def _count(spec: RunSpec, task: RunTask, *, examples: Path, known: Path | None) -> int:
    there = known is not None and features_folder(known, spec, task, "train").exists()
    [split] = prepared_splits(spec, [task], "train", folder=known if there and known else examples, prepares=True)
    return len(split)


if __name__ == "__main__":
    sys.exit(main())
