"""Is the tuned layout the best of all? Tunes three tiny models on 4 processes, then launches every layout.

    python benchmarks/tune.py [--keep SECTION ...] [--models N] [--steps N] [--repeats N]

Every layout is launched `--repeats` times, in turns over all of them, so that whatever else the machine does hits all
alike. With both kinds of launches done, the tuned choice is compared by the launches that tuning did not see.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path

from llama_scale.plan.search_space import describe
from llama_scale.spec.load import load_spec
from llama_scale.tune.layouts import tunable_layouts
from llama_scale.tune.records import Trial, Trials, layout_key
from llama_scale.tune.trial import run_trial
from llama_scale.tune.tuner import Tuner

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.live_runs import SPEC, write_spec


@dataclasses.dataclass(frozen=True, slots=True)
class Model:
    """Changes of the tiny spec."""

    name: str
    changes: tuple[str, ...]


MODELS = (
    Model("narrow", ("model.num_layers=4", "data.seq_length=64")),
    Model("wide", ("model.hidden_size=256", "model.ffn_hidden_size=704", "model.head_dim=64", "data.seq_length=64")),
    Model("deep", ("model.num_layers=12", "model.hidden_size=64", "model.ffn_hidden_size=176", "batch.global=8")),
)


def compare(model: Model, folder: Path, *, keep: tuple[str, ...], steps: int, repeats: int) -> bool:
    """Tune a model, launch all of its layouts, print the comparison; True if the choice is the best or within noise."""
    spec = load_spec(write_spec(folder / model.name, text=SPEC), overrides=model.changes)
    ranked = tunable_layouts(spec, hardware=None, keep=keep)

    def launch(sections: object) -> Trial:
        assert isinstance(sections, dict)
        return run_trial(spec, sections, steps=steps, folder=folder / "runs", tick=lambda: None)

    kept = Trials(folder / f"{model.name}.json")
    tuned = Tuner(ranked, trials=kept, measure=launch, least=6, most=24, repeats=repeats).run()
    assert tuned.best is not None, "no layout ran"
    every: dict[str, list[float]] = {}
    for turn in range(repeats):
        for one in ranked:
            trial = launch(describe(one.candidate))
            every.setdefault(layout_key(trial.sections), []).extend(trial.seconds)
        print(f"  {model.name}: all {len(ranked)} layouts launched, turn {turn + 1} of {repeats}", flush=True)
    best = {key: min(seconds) for key, seconds in every.items() if seconds}
    order = sorted(best, key=lambda key: best[key])
    chosen = layout_key(tuned.best.sections)
    spread = max(max(every[key]) / best[key] - 1 for key in order[:3])
    ratio = best[order[0]] / best[chosen]
    print(
        f"{model.name}: {len(ranked)} layouts, {tuned.launched} launches of tuning; choice is number "
        f"{order.index(chosen) + 1}, {best[chosen] * 1e3:.1f} ms against {best[order[0]] * 1e3:.1f} ms of the best "
        f"({ratio:.3f}); launches of one layout differ by up to {spread:.0%}\n  choice {chosen}\n  best   {order[0]}"
    )
    return ratio >= 1 / (1 + spread)


def main() -> None:
    """Compare the tuned choice with all layouts for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="append", default=[], help="section that stays as it is")
    parser.add_argument("--models", type=int, default=len(MODELS))
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    keep = tuple(options.keep) or ("recompute", "batch")
    with tempfile.TemporaryDirectory() as folder:
        good = [
            compare(model, Path(folder), keep=keep, steps=options.steps, repeats=options.repeats)
            for model in MODELS[: options.models]
        ]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
