"""Is the tuned layout the best of all? Three tiny models on 4 processes: every layout is launched, and tuning chooses.

    python benchmarks/tune.py [--keep SECTION ...] [--models N] [--steps N] [--repeats N] [--judge N]

1. Every layout is launched once, in a random order.
2. Tuning runs. The first launch of a layout that it asks for is the one of before; all further ones are made now.
3. The judges: the choice and the four fastest of all are launched again, `--judge` times in turns. By these launches,
   which neither tuning nor their own selection has seen, the choice is compared with the best.

What launches of one layout differ by is shown beside it: a choice within that of the best cannot be told from it.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from llama_scale.cli.plan_search import layout_name
from llama_scale.plan.search_space import describe
from llama_scale.spec.load import load_spec
from llama_scale.tune.layouts import tunable_layouts
from llama_scale.tune.records import Trial, Trials, layout_key
from llama_scale.tune.trial import run_trial
from llama_scale.tune.tuner import Tuner

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.live_runs import SPEC, write_spec

_JUDGED = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Model:
    """Changes of the tiny spec."""

    name: str
    changes: tuple[str, ...]


MODELS = (
    Model("narrow", ("model.num_layers=4", "data.seq_length=64")),
    Model("wide", ("model.hidden_size=256", "model.ffn_hidden_size=704", "model.head_dim=64", "data.seq_length=64")),
    Model("deep", ("model.num_layers=12", "model.hidden_size=64", "model.ffn_hidden_size=176")),
)

Launch = Callable[[Mapping[str, Any]], Trial]


def compare(model: Model, folder: Path, *, options: argparse.Namespace) -> bool:
    """Measure all layouts of a model, tune, print the comparison; True if the choice is the best or within noise."""
    spec = load_spec(write_spec(folder / model.name, text=SPEC), overrides=model.changes)
    ranked = tunable_layouts(spec, hardware=None, keep=tuple(options.keep) or ("recompute", "batch"))
    names = {layout_key(describe(one.candidate)): layout_name(one) for one in ranked}
    layouts = {layout_key(describe(one.candidate)): describe(one.candidate) for one in ranked}
    began = time.monotonic()

    def launch(sections: Mapping[str, Any]) -> Trial:
        return run_trial(spec, sections, steps=options.steps, folder=folder / "runs", tick=lambda: None)

    order = list(layouts)
    Random(0).shuffle(order)
    first = {key: launch(layouts[key]) for key in order}
    print(f"{model.name}: {len(order)} layouts launched in {time.monotonic() - began:.0f} s", flush=True)
    kept = Trials(folder / f"{model.name}.json")
    tuned = Tuner(
        ranked, trials=kept, measure=_replaying(first, launch), least=6, most=24, repeats=options.repeats
    ).run()
    assert tuned.best is not None, "no layout ran"
    choice = layout_key(tuned.best.sections)
    times = {key: trial.step_s for key, trial in first.items() if trial.step_s is not None}
    judged = [choice, *(key for key in sorted(times, key=lambda key: times[key]) if key != choice)][: _JUDGED + 1]
    seconds: dict[str, list[float]] = {key: [] for key in judged}
    for turn in range(options.judge):
        for key in judged[:: 1 if turn % 2 else -1]:
            seconds[key].extend(launch(layouts[key]).seconds)
    for key in sorted(times, key=lambda key: times[key]):
        again = " ".join(f"{s * 1e3:.1f}" for s in seconds.get(key, ()))
        mark = "choice" if key == choice else ""
        print(f"  {names[key]:40s} {times[key] * 1e3:8.1f} ms   judges {again:20s} {mark}")
    best = {key: min(values) for key, values in seconds.items() if values}
    ratio = min(best.values()) / best[choice]
    seen = sum(one.trial is not None for one in tuned.layouts)
    noise = median(max(values) / min(values) - 1 for values in seconds.values() if values)
    print(
        f"{model.name}: best over choice {ratio:.3f}; launches of one layout differ by {noise:.0%} (median); tuning "
        f"saw {seen} of {len(order)} layouts in {tuned.launched} launches; "
        f"{time.monotonic() - began:.0f} s",
        flush=True,
    )
    return ratio >= 1 / (1 + noise)


def _replaying(first: Mapping[str, Trial], launch: Launch) -> Launch:
    """Return a function that gives a layout's first launch when it is first asked, and launches it afterwards."""
    asked: set[str] = set()

    def measure(sections: Mapping[str, Any]) -> Trial:
        key = layout_key(sections)
        if key in asked:
            return launch(sections)
        asked.add(key)
        return first[key]

    return measure


def main() -> None:
    """Compare the tuned choice with all layouts for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="append", default=[], help="section that stays as it is")
    parser.add_argument("--models", type=int, default=len(MODELS))
    parser.add_argument("--skip", type=int, default=0, help="models to leave out at the front")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--judge", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        good = [compare(model, Path(folder), options=options) for model in MODELS[options.skip :][: options.models]]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
