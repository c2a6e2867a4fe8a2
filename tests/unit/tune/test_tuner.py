from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_scale.errors import LaunchError, SpecError
from llama_scale.plan.search import Ranked
from llama_scale.plan.search_space import describe
from llama_scale.plan.step_time import StepTime
from llama_scale.tune.correction import GROUPS, Cost, fit_correction, grouped, layout_cost
from llama_scale.tune.layouts import tunable_layouts
from llama_scale.tune.machine import machine_key, workload_key
from llama_scale.tune.records import Trial, Trials, layout_key
from llama_scale.tune.trial import measured_steps, trial_spec, typical_seconds
from llama_scale.tune.tuner import Tuner
from tests.unit.plan.specs import run_spec

SPEC = run_spec(dp=4, accumulation=2, cluster={"nodes": 1, "devices_per_node": 4, "device": "cpu"})
PARTS = [field.name for field in fields(StepTime)]


def step(**parts: float) -> StepTime:
    return StepTime(**(dict.fromkeys(PARTS, 0.0) | parts))


def layouts() -> tuple[Ranked, ...]:
    return tunable_layouts(SPEC, hardware=None, keep=("recompute", "batch"))


class Machine:
    """A machine of which each kind of cost takes so many times what is predicted.

    Args:
        factors: Of the kinds of cost.
        failing: Kind of engine whose layouts fail.
        overheads: Engine -> seconds that it adds to a step, and to each micro-batch.
        noise: Launches take up to this share longer.
        seed: Of the noise.
    """

    def __init__(
        self,
        factors: Mapping[str, float],
        *,
        failing: str = "",
        overheads: Mapping[str, tuple[float, float]] | None = None,
        noise: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.launches: list[str] = []
        self._factors, self._failing, self._overheads = factors, failing, overheads or {}
        self._noise, self._random = noise, Random(seed)
        self._costs = {layout_key(describe(one.candidate)): layout_cost(one) for one in layouts()}

    def seconds(self, key: str) -> float:
        cost = self._costs[key]
        each_step, each_micro = self._overheads.get(cost.engine, (0.0, 0.0))
        parts = sum(f * size for f, size in zip(self._factors.values(), grouped(cost.step), strict=True))
        return parts + each_step + each_micro * cost.micro_batches

    def __call__(self, sections: Mapping[str, Any]) -> Trial:
        key = layout_key(sections)
        self.launches.append(key)
        if sections["engine"]["kind"] == self._failing:
            return Trial(sections=dict(sections), problem="failed: it did")
        return Trial(sections=dict(sections), seconds=(self.seconds(key) * (1 + self._noise * self._random.random()),))

    def best(self) -> float:
        return min(self.seconds(key) for key in self._costs)


def tuner(machine: Machine, path: Path, **options: Any) -> Tuner:
    chosen = {"least": 4, "most": 40, "repeats": 1, **options}
    return Tuner(layouts(), trials=Trials(path), measure=machine, **chosen)


@pytest.mark.parametrize("dear", list(GROUPS))
def test_best_layout_is_found_whatever_is_dear_on_the_machine(tmp_path: Path, dear: str) -> None:
    machine = Machine(dict.fromkeys(GROUPS, 3.0) | {dear: 40.0})

    outcome = tuner(machine, tmp_path / "t.json").run()

    assert outcome.best is not None
    assert outcome.best.step_s == pytest.approx(machine.best(), rel=0.02)
    assert outcome.launched == len(machine.launches) == len(set(machine.launches))
    assert outcome.launched < len(layouts())


_DEAR = {"deepspeed": (0.05, 0.01), "deepspeed-zero-3": (0.1, 0.05), "deepspeed-pipeline": (0.02, 0.02)}


@pytest.mark.parametrize("cheap", ["megatron", "ddp", "deepspeed"])
def test_best_layout_is_found_whatever_engine_has_overhead(tmp_path: Path, cheap: str) -> None:
    overheads = _DEAR | {"megatron": (0.1, 0.0), "ddp": (0.1, 0.0), cheap: (0.001, 0.0)}
    machine = Machine(dict.fromkeys(GROUPS, 3.0), overheads=overheads)

    outcome = tuner(machine, tmp_path / "t.json", least=6, most=24).run()

    assert outcome.best is not None
    assert outcome.best.step_s == pytest.approx(machine.best(), rel=0.02)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("noise", "loss"), [(0.1, 0.03), (0.33, 0.12)])
def test_choice_stands_noise(tmp_path: Path, noise: float, loss: float, seed: int) -> None:
    machine = Machine(dict.fromkeys(GROUPS, 3.0) | {"tensor": 12.0}, overheads=_DEAR, noise=noise, seed=seed)

    outcome = tuner(machine, tmp_path / "t.json", least=6, most=24, repeats=3).run()

    assert outcome.best is not None
    assert machine.seconds(layout_key(outcome.best.sections)) <= (1 + loss) * machine.best()
    assert outcome.launched <= 24 + 8 + 4 + 4


def test_half_of_the_contenders_go_on_to_each_turn(tmp_path: Path) -> None:
    machine = Machine(dict.fromkeys(GROUPS, 2.0))

    tuner(machine, tmp_path / "t.json", least=20, repeats=4).run()

    counts = sorted((machine.launches.count(key) for key in set(machine.launches)), reverse=True)
    assert counts[0] == 4
    assert sum(count > 1 for count in counts) <= 8
    assert (
        sum(count > 3 for count in counts) <= sum(count > 2 for count in counts) <= sum(count > 1 for count in counts)
    )


def test_what_was_measured_is_not_launched_again(tmp_path: Path) -> None:
    machine = Machine(dict.fromkeys(GROUPS, 2.0))
    first = tuner(machine, tmp_path / "t.json").run()

    again = tuner(machine, tmp_path / "t.json").run()

    assert again.launched == 0
    assert again.best is not None
    assert first.best is not None
    assert again.best.sections == first.best.sections


def test_best_layouts_are_launched_again_in_turns(tmp_path: Path) -> None:
    machine = Machine(dict.fromkeys(GROUPS, 2.0))

    outcome = tuner(machine, tmp_path / "t.json", repeats=3).run()

    assert outcome.best is not None
    assert outcome.best.trial is not None
    assert len(outcome.best.trial.seconds) == 3


def test_layouts_that_fail_are_passed_over(tmp_path: Path) -> None:
    machine = Machine(dict.fromkeys(GROUPS, 2.0), failing="ddp")

    outcome = tuner(machine, tmp_path / "t.json").run()

    assert outcome.best is not None
    assert outcome.best.sections["engine"]["kind"] != "ddp"


def test_no_more_are_launched_than_allowed(tmp_path: Path) -> None:
    machine = Machine(dict.fromkeys(GROUPS, 2.0))

    assert tuner(machine, tmp_path / "t.json", least=2, most=3).run().launched <= 3


@given(st.lists(st.floats(0.1, 50), min_size=len(GROUPS), max_size=len(GROUPS)))
def test_correction_is_no_worse_than_one_common_factor(factors: list[float]) -> None:
    part_of = {group: parts[0] for group, parts in GROUPS.items()}
    steps = [step(**{part: 3.0 if part == dear else 0.2 for part in part_of.values()}) for dear in part_of.values()]
    measured = [(Cost(step=one), sum(f * s for f, s in zip(factors, grouped(one), strict=True))) for one in steps]

    found = fit_correction(measured)
    common = median(seconds / one.step.total for one, seconds in measured)

    def error(predict: Callable[[Cost], float]) -> float:
        return sum((predict(one) / seconds - 1) ** 2 for one, seconds in measured)

    assert error(found.seconds) <= error(lambda one: common * one.step.total) + 1e-9
    assert all(factor >= 0 for factor in found.factors.values())


def test_without_measurements_predictions_stay_as_they_are() -> None:
    assert fit_correction([]).seconds(Cost(step=step(gemm=1.0, data=2.0))) == 3.0


def test_overhead_of_an_engine_is_told_from_the_machines_speed() -> None:
    def seconds(cost: Cost) -> float:
        return 2 * cost.step.total + (0.5 + 0.1 * cost.micro_batches if cost.engine == "slow" else 0.0)

    costs = [
        Cost(step=step(gemm=gemm, data=data), engine=engine, micro_batches=micro)
        for engine in ("slow", "quick")
        for gemm, data, micro in ((1.0, 0.1, 1), (1.0, 0.1, 8), (0.2, 0.6, 4))
    ]

    found = fit_correction([(cost, seconds(cost)) for cost in costs])

    each_step, each_micro = found.overheads["slow"]
    assert each_step == pytest.approx(0.5, rel=0.2)
    assert each_micro == pytest.approx(0.1, rel=0.2)
    assert max(found.overheads["quick"]) < 0.05
    unseen = Cost(step=step(gemm=0.5, data=0.5), engine="slow", micro_batches=2)
    assert found.seconds(unseen) == pytest.approx(seconds(unseen), rel=0.1)
    other = found.seconds(Cost(step=unseen.step, engine="new", micro_batches=2))  # the mean of both
    assert 2 * unseen.step.total < other < seconds(unseen)


def test_measurements_join_and_survive_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "t.json"
    sections = {"engine": {"kind": "ddp"}}

    Trials(path).add(Trial(sections=sections, seconds=(2.0,)))
    Trials(path).add(Trial(sections=sections, seconds=(1.5,)))

    kept = Trials(path).get(layout_key(sections))
    assert kept is not None
    assert kept.seconds == (2.0, 1.5)
    assert kept.step_s == 1.5
    assert Trials(path, fresh=True).get(layout_key(sections)) is None
    path.write_text("{")
    assert Trials(path).get(layout_key(sections)) is None


def test_measurements_that_cannot_be_kept_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(
        LaunchError, match=r"cannot keep measurements in .*; name another folder with LLAMA_SCALE_CACHE"
    ):
        Trials(tmp_path / "file" / "t.json").add(Trial(sections={}))


def test_key_follows_what_speed_depends_on_and_not_the_layout() -> None:
    other = run_spec(dp=2, tp=2, accumulation=4, cluster={"nodes": 1, "devices_per_node": 4, "device": "cpu"})
    longer = run_spec(dp=4, accumulation=2, seq_length=128, cluster=SPEC.cluster.model_dump())

    assert workload_key(other) == workload_key(SPEC)
    assert workload_key(longer) != workload_key(SPEC)
    assert machine_key() == machine_key()


def test_every_layout_makes_a_trial_that_keeps_nothing() -> None:
    for one in layouts():
        spec = trial_spec(SPEC, describe(one.candidate), steps=5)
        assert spec.train.steps == 7
        assert spec.checkpoint.every_steps is None
        assert spec.validation is None
        assert spec.model == SPEC.model
        assert spec.batch.global_ == SPEC.batch.global_


def test_layout_that_the_rules_refuse_is_no_trial() -> None:
    with pytest.raises(SpecError):
        trial_spec(SPEC, {"parallel": {"data": 3}}, steps=5)


def test_kept_sections_stay() -> None:
    kept = tunable_layouts(SPEC, hardware=None, keep=("engine",))

    assert {describe(one.candidate)["engine"]["kind"] for one in kept} == {"megatron"}
    assert len(kept) < len(tunable_layouts(SPEC, hardware=None))


def test_layouts_that_run_alike_are_tried_once() -> None:
    zeros = [d["engine"]["zero"] for one in layouts() if (d := describe(one.candidate))["parallel"]["pipeline"] > 1
             and d["engine"]["kind"] == "deepspeed"]  # fmt: skip

    assert set(zeros) == {1}


def test_accelerator_must_be_known() -> None:
    spec = run_spec(dp=4, accumulation=2, cluster={"nodes": 1, "devices_per_node": 4, "device": "cuda"})

    with pytest.raises(SpecError, match="tuning needs to know the accelerator"):
        tunable_layouts(spec, hardware=None)


def test_model_that_fits_nowhere_is_refused() -> None:
    huge = {"hidden_size": 1 << 16, "ffn_hidden_size": 1 << 18, "num_layers": 256, "num_heads": 512, "head_dim": 128}
    spec = run_spec(model=huge, dp=4, accumulation=2, cluster={"nodes": 1, "devices_per_node": 4, "device": "cpu"})

    with pytest.raises(SpecError, match=r"none of \d+ layouts fits 4 x this-machine; nothing to tune"):
        tunable_layouts(spec, hardware=None)


def test_slow_steps_of_a_busy_machine_do_not_count() -> None:
    assert typical_seconds([1.0, 9.0, 1.2, 8.0, 1.1, 7.0]) == 1.1
    assert typical_seconds([2.0]) == 2.0


def test_first_steps_do_not_count(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(f'{{"step": {n}, "step_time_s": {n}.5}}\n' for n in range(1, 5)))

    assert measured_steps(metrics) == [3.5, 4.5]
    assert measured_steps(tmp_path / "none") == []
